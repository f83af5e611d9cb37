"""Textual inversions against diffusers' `load_textual_inversion`: the same text states.

There a concept of several vectors is that many tokens, "<cat> <cat>_1", which the tokenizer puts in place of "<cat>".
"""

import copy
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from parity import tiny_sdxl
from parity.conftest import CHECKPOINT
from parity.conftest import Subject as Sd15
from parity.test_pictures import relative
from parity.test_prompts import Words, states
from safetensors.numpy import load_file, save_file
from transformers import CLIPTokenizer

from server.adapters.tokens import Inversion, inversion
from server.catalog import Engine, read_catalog
from server.engines.local import LocalEngines
from server.engines.port import Array, Tensors
from server.families.base import Run
from server.families.texts import text_states
from server.wording import Wording, read_texts

TOLERANCE = 1e-3  # that of latents, of the states that these come from
FAR = 0.05


def vectors(count: int, width: int, seed: int) -> Array:
    """About as long as the rows of the tables here."""
    return np.random.RandomState(seed).normal(0, 0.05, (count, width)).astype(np.float32)


async def found(engine: Engine, prompt: str, negative: str, inversions: list[Inversion], run: Run) -> list[Tensors]:
    """The outputs of each text encoder; rows are prompt and negative prompt."""
    texts = engine.family.texts(engine.card)
    read = read_texts(Wording(prompt, prompt, negative, negative), texts, engine.tokenizers, inversions, ())
    assert read.notices == ()
    readers = {text.engine: text for text in texts}  # the refiner's text is the second encoder's
    return [
        await text_states(
            spec,
            [read.prompts[readers[spec.name]], read.negative_prompts[readers[spec.name]]],
            [0, 0],
            run,
            read.vectors,
        )
        for spec in engine.specs
        if spec.name in readers
    ]


def read(trigger: str, file: Path) -> Inversion:
    return inversion(trigger, load_file(file))


@asynccontextmanager
async def text_encoder(subject: Sd15) -> AsyncIterator[Run]:
    engines = LocalEngines(subject.repository, subject.engine.specs)
    await engines.load("sd15_text_encoder")
    yield lambda spec, inputs: engines.run(spec.name, inputs)
    await engines.close()


def pipeline_with(subject: Sd15, files: Mapping[str, Path]) -> Any:
    """A pipeline of the same weights that knows some concepts, by trigger word. Adding tokens changes what they are
    added to."""
    oracle = subject.oracle
    pipeline = StableDiffusionPipeline(
        vae=oracle.vae,
        text_encoder=copy.deepcopy(oracle.text_encoder),
        tokenizer=CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer"),
        unet=oracle.unet,
        scheduler=oracle.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for trigger, file in files.items():
        pipeline.load_textual_inversion(str(file), token=trigger)
    return pipeline


async def test_sd15_reads_concepts_as_diffusers_does(subject: Sd15, tmp_path: Path) -> None:
    """Of one and of three vectors, in both texts, written to words and twice."""
    files = {"<cat>": tmp_path / "cat.safetensors", "vangoghish": tmp_path / "style.safetensors"}
    width = subject.oracle.text_encoder.config.hidden_size
    save_file({"<cat>": vectors(1, width, 1)}, files["<cat>"])
    save_file({"emb_params": vectors(3, width, 2)}, files["vangoghish"])
    pipeline = pipeline_with(subject, files)
    inversions = [read(trigger, file) for trigger, file in files.items()]
    texts = ("a red house, vangoghish <cat>, the <cat> sun", "the vangoghish sun")
    async with text_encoder(subject) as run:
        (ours,) = await found(subject.engine, *texts, inversions, run)
        (plain,) = await found(subject.engine, *texts, [], run)
    with torch.inference_mode():
        reference = torch.cat(pipeline.encode_prompt(texts[0], "cpu", 1, True, negative_prompt=texts[1])[:2]).numpy()
    assert relative(ours["hidden_states"], reference) < TOLERANCE
    assert relative(plain["hidden_states"], reference) > FAR


async def test_sd15_weighs_all_vectors_of_a_concept(subject: Sd15, tmp_path: Path) -> None:
    file, width = tmp_path / "cat.safetensors", subject.oracle.text_encoder.config.hidden_size
    save_file({"<cat>": vectors(2, width, 3)}, file)
    pipeline = pipeline_with(subject, {"<cat>": file})
    words: Words = [("the", 1.0), ("<cat>", 1.3), ("<cat>_1", 1.3), ("sun", 1.0)]
    async with text_encoder(subject) as run:
        given = ("the (<cat>:1.3) sun", "")
        (ours,) = await found(subject.engine, *given, [read("<cat>", file)], run)
    with torch.inference_mode():
        reference, _ = states(pipeline.text_encoder, pipeline.tokenizer, words, 1, 0, normed=True)
    assert relative(ours["hidden_states"][:1], reference.numpy()) < TOLERANCE


async def test_sdxl_reads_concepts_by_both_encoders_as_diffusers_does(tmp_path: Path) -> None:
    """As published for SDXL: `clip_l` and `clip_g` in one file, loaded each into its encoder."""
    base, refiner, repository = (tmp_path / name for name in ("base", "refiner", "repository"))
    tiny_sdxl.write(base, refiner)
    run = tiny_sdxl.torch_engines(tiny_sdxl.joined(base, refiner), repository)
    engine = read_catalog(repository)["sdxl"]
    pipeline: Any = tiny_sdxl.oracle(base, refiner, zeros=False).base
    tensors = {
        "clip_l": vectors(2, pipeline.text_encoder.config.hidden_size, 4),
        "clip_g": vectors(2, pipeline.text_encoder_2.config.hidden_size, 5),
    }
    save_file(tensors, tmp_path / "cat.safetensors")
    for key, encoder, tokenizer in (
        ("clip_l", pipeline.text_encoder, pipeline.tokenizer),
        ("clip_g", pipeline.text_encoder_2, pipeline.tokenizer_2),
    ):
        tensor = {"<cat>": torch.from_numpy(tensors[key])}
        pipeline.load_textual_inversion(tensor, token="<cat>", text_encoder=encoder, tokenizer=tokenizer)
    texts = ("the red <cat> sun", "a <cat>")
    given = (*texts, [read("<cat>", tmp_path / "cat.safetensors")])
    first, second = await found(engine, *given, run)
    with torch.inference_mode():
        positive, negative, pooled, negative_pooled = pipeline.encode_prompt(texts[0], negative_prompt=texts[1])
    reference = torch.cat([positive, negative]).numpy()
    joined = np.concatenate([first["hidden_states"], second["hidden_states"]], axis=-1)
    assert relative(joined, reference) < TOLERANCE
    assert relative(second["pooled"], torch.cat([pooled, negative_pooled]).numpy()) < TOLERANCE
