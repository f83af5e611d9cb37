"""Texts against diffusers: long and weighted prompts as embeddings that torch's text encoders make of the same chunks,
skipped layers by the pipelines' own `clip_skip`.

diffusers has neither weights nor chunks; it takes embeddings. The reference below builds them from words, with none of
the service's code: 75 tokens a chunk, the shorter text filled up with chunks of the empty one, a token's state
z' = empty + weight * (z - empty), where `empty` is the empty text's at the same place (ComfyUI's and compel's formula),
the pooled embedding of the first chunk. A negative prompt skips no layers in diffusers.
"""

import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from mediagen.v1 import image_pb2 as pb
from parity.conftest import Subject as Sd15
from parity.test_pictures import CLIPPED, LATENTS_TOLERANCE, MAX_TOLERANCE, MEAN_TOLERANCE, REFERENCES, relative
from parity.test_sd3 import Subject as Sd3
from parity.test_sd3 import exported as sd3_exported
from parity.test_sd3 import subject as sd3_subject
from parity.test_sdxl import SIZES
from parity.test_sdxl import Subject as Sdxl
from parity.test_sdxl import subject as sdxl_subject

from server.beginning import encode
from server.denoising import denoise
from server.engines.local import LocalEngines
from server.engines.port import Array
from server.families.base import Run
from server.families.sd3 import T5_TOKENS
from server.plan import Plan
from server.request import plan
from server.scheduler import StepScheduler

exported, sd3, sdxl = sd3_exported, sd3_subject, sdxl_subject  # the same checkpoints
SEED = 1234
GUIDANCE = 2.0
STEPS = 3
SHARE = 0.6  # of the base: two steps, then one of the refiner
TOKENS = 77
Word = tuple[str, float]  # one token of every vocabulary here, and its weight
Words = Sequence[Word]

PLAIN: Words = [("the", 1.0), ("red", 1.0), ("sun", 1.0)]
WEIGHTED: Words = [("the", 1.0), ("red", 1.5), ("sun", 0.5)]
INVERTED: Words = [("sun", -1.0), ("the", 2.0)]
LONG: Words = [("red", 1.0), ("sun", 1.0), ("the", 1.0)] * 40  # two chunks, the second partly filled
LONGEST: Words = [*WEIGHTED * 30, *PLAIN * 40]  # 210 words: three chunks, weights in the first two
NONE: Words = []

Case = tuple[Words, Words, int]  # prompt, negative prompt, layers skipped
CASES: Mapping[str, Case] = {
    "three chunks with weights": (LONGEST, PLAIN, 0),
    "weights, two layers skipped": (WEIGHTED, NONE, 2),
    "weights": (WEIGHTED, PLAIN, 0),
    "negative weights": (PLAIN, INVERTED, 0),
    "long negative": (PLAIN, LONG, 0),
    "long, one layer skipped": (LONG, WEIGHTED, 1),
}
PARTS = [  # several cases a test: loading the engines takes longer than a picture
    pytest.param(tuple(CASES)[:2], id="quick"),
    pytest.param(tuple(CASES)[2:], id="thorough", marks=pytest.mark.thorough),
]


def written(words: Words) -> str:
    """A prompt as a caller writes it."""
    groups = [
        (weight, " ".join(word for word, _ in group)) for weight, group in groupby(words, key=lambda word: word[1])
    ]
    return " ".join(text if weight == 1 else f"({text}:{weight})" for weight, text in groups)


def states(encoder: Any, tokenizer: Any, words: Words, chunks: int, skip: int, normed: bool) -> Any:
    """What diffusers makes of each chunk, weighted (1 tokens width), and the first one's pooled embedding."""
    parts = [words[begin : begin + TOKENS - 2] for begin in range(0, chunks * (TOKENS - 2), TOKENS - 2)]
    found = []
    for part in [*parts, ()]:
        text = " ".join(word for word, _ in part)
        ids = tokenizer(text, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
        assert ids.shape == (1, TOKENS)
        encoded = encoder(ids, output_hidden_states=True)
        layer = encoded.hidden_states[-(skip + (1 if normed else 2))]
        found.append((encoder.final_layer_norm(layer) if normed else layer, encoded[0]))
    *chunk_states, (empty, _) = found
    weighted = []
    for part, (z, _) in zip(parts, chunk_states, strict=True):
        inside = [weight for _, weight in part]
        weights = torch.tensor([1.0, *inside, *[1.0] * (TOKENS - 1 - len(inside))])[None, :, None]
        weighted.append(empty + weights * (z - empty))
    return torch.cat(weighted, dim=1), chunk_states[0][1]


def chunks_of(*texts: Words) -> int:
    return max(1, *(-(-len(words) // (TOKENS - 2)) for words in texts))


@asynccontextmanager
async def engines_of(subject: Sd15 | Sd3) -> AsyncIterator[Run]:
    """Executions in this process of those engines that run here."""
    engines = LocalEngines(subject.repository, subject.engine.specs)
    for spec in subject.engine.specs:
        if not spec.name.endswith("_vae_encoder"):
            await engines.load(spec.name)
    yield StepScheduler(engines).run
    await engines.close()


@pytest.fixture
async def run(subject: Sd15) -> AsyncIterator[Run]:
    """Executions of SD 1.5's engines."""
    async with engines_of(subject) as executions:
        yield executions


def plan_of(subject: Sd15 | Sdxl | Sd3, **fields: Any) -> Plan:
    """A few steps of a small picture: nothing in the path knows that it is no size of the API."""
    name = subject.engine.card.name
    request = pb.GenerateRequest(engine=name, seed=SEED, steps=STEPS, cfg_scale=GUIDANCE, **fields)
    return dataclasses.replace(plan(request, {name: subject.engine}), size=SIZES[0])


async def ours(made: Plan, run: Run) -> tuple[Array, Array]:
    """Latents (c h w) and pixels (height width 3)."""
    family, card = made.engine.family, made.engine.card
    stages = await family.condition(made, card, run)
    latents = await denoise(made, stages, await encode(made, run), SEED, run, lambda: None)
    return latents, await family.decode(latents, card, run)


def theirs(subject: Sd15, **texts: Any) -> tuple[Array, Array]:
    """The same from StableDiffusionPipeline."""
    pipeline = subject.oracle
    # `clip_skip` of diffusers looks for the norm in a part that transformers no longer has
    pipeline.text_encoder.__dict__["text_model"] = pipeline.text_encoder
    config = diffusers.PNDMScheduler.load_config(pipeline.config._name_or_path, subfolder="scheduler")
    pipeline.scheduler = REFERENCES["DDIM"](config)
    with torch.inference_mode():
        latents = pipeline(**texts, **said(), width=SIZES[0].width, height=SIZES[0].height).images
    return latents[0].numpy(), pixels_of(pipeline, latents)


def said() -> dict[str, Any]:
    return {
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "generator": torch.Generator().manual_seed(SEED),
        "output_type": "latent",
    }


def pixels_of(pipeline: Any, latents: Any) -> Array:
    with torch.inference_mode():
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
        return (pipeline.image_processor.postprocess(decoded, output_type="np")[0] * 255).round().astype(np.uint8)


def theirs_refined(subject: Sdxl, base_texts: Any, refiner_texts: Any) -> tuple[Array, Array]:
    """The same from StableDiffusionXLPipeline and its refiner."""
    base, refiner = subject.oracle.base, subject.oracle.refiner
    for pipeline in (base, refiner):
        pipeline.scheduler = REFERENCES["DDIM"](subject.oracle.scheduler)
    told, (width, height) = said(), SIZES[0]
    with torch.inference_mode():
        latents = base(**base_texts, **told, width=width, height=height, denoising_end=SHARE).images
        latents = refiner(**refiner_texts, **told, image=latents, denoising_start=SHARE).images
    return latents[0].numpy(), pixels_of(base, latents)


def assert_equal(found: tuple[Array, Array], reference: tuple[Array, Array]) -> None:
    (latents, pixels), (reference_latents, reference_pixels) = found, reference
    assert np.mean((reference_pixels == 0) | (reference_pixels == 255)) < CLIPPED
    assert relative(latents, reference_latents) < LATENTS_TOLERANCE
    gap = np.abs(pixels.astype(np.float32) - reference_pixels) / 255
    assert gap.mean() <= MEAN_TOLERANCE
    assert gap.max() <= MAX_TOLERANCE


def sd15_texts(subject: Sd15, positive: Words, negative: Words, skip: int) -> dict[str, Any]:
    encoder, tokenizer = subject.oracle.text_encoder, subject.oracle.tokenizer
    chunks = chunks_of(positive, negative)
    with torch.inference_mode():
        return {
            "prompt_embeds": states(encoder, tokenizer, positive, chunks, skip, normed=True)[0],
            "negative_prompt_embeds": states(encoder, tokenizer, negative, chunks, 0, normed=True)[0],
        }


def sdxl_texts(subject: Sdxl, first: tuple[Words, Words], second: tuple[Words, Words], chunks: int, skip: int) -> Any:
    """(positive, negative) of the first and of the second encoder; the refiner reads the second alone."""
    base = subject.oracle.base
    with torch.inference_mode():
        halves = []
        for side, skipped in ((0, skip), (1, 0)):
            one = states(base.text_encoder, base.tokenizer, first[side], chunks, skipped, normed=False)[0]
            two, pooled = states(base.text_encoder_2, base.tokenizer_2, second[side], chunks, skipped, normed=False)
            halves.append((one, two, pooled))
    (one, two, pooled), (negative_one, negative_two, negative_pooled) = halves
    summary = {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": negative_pooled}
    alone = {"prompt_embeds": two, "negative_prompt_embeds": negative_two, **summary}
    joined = (torch.cat(pair, dim=-1) for pair in ((one, two), (negative_one, negative_two)))
    return {**alone, **dict(zip(("prompt_embeds", "negative_prompt_embeds"), joined, strict=True))}, alone


@pytest.mark.parametrize("cases", PARTS)
async def test_sd15_reads_chunks_weights_and_skipped_layers_as_the_reference_does(
    subject: Sd15, run: Run, cases: Sequence[str]
) -> None:
    for positive, negative, skip in (CASES[case] for case in cases):
        fields = {"prompt": written(positive), "negative_prompt": written(negative)}
        made = plan_of(subject, **fields, clip_skip=skip or None)
        assert_equal(await ours(made, run), theirs(subject, **sd15_texts(subject, positive, negative, skip)))


@pytest.mark.parametrize("cases", PARTS)
async def test_sdxl_and_its_refiner_read_chunks_weights_and_skipped_layers_as_the_reference_does(
    sdxl: Sdxl, cases: Sequence[str]
) -> None:
    """The second encoder reads other texts; the refiner reads `prompt`, in as many chunks."""
    async with sdxl.engines() as executions:
        for positive, negative, skip in (CASES[case] for case in cases):
            first, second = (positive, negative), (negative or PLAIN, positive)
            fields = dict(
                zip(("prompt", "negative_prompt", "prompt_2", "negative_prompt_2"), first + second, strict=True)
            )
            texts = {name: written(words) for name, words in fields.items()}
            made = plan_of(sdxl, **texts, clip_skip=skip or None, high_noise_frac=SHARE)
            chunks = chunks_of(positive, negative)
            base_texts, _ = sdxl_texts(sdxl, first, second, chunks, skip)
            _, refiner_texts = sdxl_texts(sdxl, first, first, chunks, skip)
            assert_equal(await ours(made, executions), theirs_refined(sdxl, base_texts, refiner_texts))


def sd3_texts(subject: Sd3, positive: Words, negative: Words) -> dict[str, Any]:
    """As StableDiffusion3Pipeline joins what its encoders make: CLIP's states side by side, T5's behind them."""
    oracle, width = subject.oracle, subject.oracle.transformer.config.joint_attention_dim
    told = {}
    with torch.inference_mode():
        for half, words in (("", positive), ("negative_", negative)):
            one, pooled = states(oracle.text_encoder, oracle.tokenizer, words, 1, 0, normed=False)
            two, pooled_2 = states(oracle.text_encoder_2, oracle.tokenizer_2, words, 1, 0, normed=False)
            clip = torch.nn.functional.pad(torch.cat((one, two), dim=-1), (0, width - one.shape[2] - two.shape[2]))
            behind = t5_states(oracle, words) if oracle.text_encoder_3 is not None else torch.zeros(1, T5_TOKENS, width)
            told[f"{half}prompt_embeds"] = torch.cat((clip, behind), dim=1)
            told[f"{half}pooled_prompt_embeds"] = torch.cat((pooled, pooled_2), dim=-1)
    return told


def t5_states(oracle: Any, words: Words) -> Any:
    """1 256 width: a word is one token, behind which is the end."""
    found = []
    for text in (" ".join(word for word, _ in words), ""):
        ids = oracle.tokenizer_3(text, padding="max_length", max_length=T5_TOKENS, return_tensors="pt").input_ids
        found.append(oracle.text_encoder_3(ids)[0])
    assert ids[0, 0] == oracle.tokenizer_3.eos_token_id
    z, empty = found
    weights = torch.tensor([*(weight for _, weight in words), *[1.0] * (T5_TOKENS - len(words))])[None, :, None]
    return empty + weights * (z - empty)


@pytest.mark.thorough
async def test_sd3_reads_weights_by_every_encoder_as_the_reference_does(sd3: Sd3) -> None:
    positive: Words = [("the", 1.0), ("red", 1.5), ("sea", 0.5)]
    negative: Words = [("sea", -1.0), ("the", 2.0)]
    made = plan_of(sd3, prompt=written(positive), negative_prompt=written(negative))
    pipeline = sd3.oracle
    with torch.inference_mode():
        pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, shift=3.0)
        latents = pipeline(**sd3_texts(sd3, positive, negative), **said(), width=SIZES[0].width, height=SIZES[0].height)
        vae = pipeline.vae
        decoded = vae.decode(latents.images / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]
        pixels = (pipeline.image_processor.postprocess(decoded, output_type="np")[0] * 255).round().astype(np.uint8)
    async with engines_of(sd3) as executions:
        assert_equal(await ours(made, executions), (latents.images[0].numpy(), pixels))


@pytest.mark.parametrize("skip", [pytest.param(1, marks=pytest.mark.thorough), 2])
async def test_sd15_skips_layers_as_diffusers_own_argument_does(subject: Sd15, run: Run, skip: int) -> None:
    texts = {"prompt": "the red sun", "negative_prompt": "the sun"}
    found = await ours(plan_of(subject, **texts, clip_skip=skip), run)
    assert_equal(found, theirs(subject, **texts, clip_skip=skip))
    assert relative(found[0], theirs(subject, **texts)[0]) > 5 * LATENTS_TOLERANCE


@pytest.mark.parametrize("skip", [pytest.param(1, marks=pytest.mark.thorough), 2])
async def test_sdxl_and_its_refiner_skip_layers_as_diffusers_own_argument_does(sdxl: Sdxl, skip: int) -> None:
    texts = {"prompt": "the red sun", "prompt_2": "red", "negative_prompt": "the sun", "negative_prompt_2": "sun"}
    async with sdxl.engines() as executions:
        found = await ours(plan_of(sdxl, **texts, clip_skip=skip, high_noise_frac=SHARE), executions)
    told = {**texts, "clip_skip": skip}
    assert_equal(found, theirs_refined(sdxl, told, told))
    assert relative(found[0], theirs_refined(sdxl, texts, texts)[0]) > 5 * LATENTS_TOLERANCE


OTHERS: Sequence[Mapping[str, Any]] = (
    {"prompt": written(PLAIN)},
    {"prompt": written(LONGEST[:75])},  # its first chunk
    {"prompt": written([("the", 1.0), ("red", 1.7), ("sun", 0.5)] * 30 + list(PLAIN) * 40)},
    {"negative_prompt": written([("the", 1.0), ("red", 4.0), ("sun", -3.0)])},
    {"clip_skip": 1},
)


async def test_another_text_is_far_from_the_reference(subject: Sd15, run: Run) -> None:
    """The comparison can fail: weights and later chunks show by far more than the tolerance."""
    reference, _ = theirs(subject, **sd15_texts(subject, LONGEST, PLAIN, 0))
    for other in OTHERS:
        fields = {"prompt": written(LONGEST), "negative_prompt": written(PLAIN), **other}
        assert relative((await ours(plan_of(subject, **fields), run))[0], reference) > 5 * LATENTS_TOLERANCE, other


async def test_plain_prompts_of_one_chunk_are_what_one_call_with_both_gives_bit_for_bit(
    subject: Sd15, run: Run
) -> None:
    made = plan_of(subject, prompt="the red sun", negative_prompt="the sun")
    (text,), spec = made.prompts, made.engine.specs[0]
    ids = np.array([prompt.chunks[0].ids for prompt in made.rows(text)])
    unread = np.zeros((2, 1, spec.inputs[-1].shape[-1]), np.float32)
    answer = await run(spec, {"input_ids": ids, "skip": np.zeros(2, np.int64), "vectors": unread})
    (stage,) = await made.engine.family.condition(made, made.engine.card, run)
    assert stage.networks[0].inputs["encoder_hidden_states"].tobytes() == answer["hidden_states"].tobytes()
