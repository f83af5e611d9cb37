"""A new family is one new file, a new sampler is one file and its line in the registry: nothing else has to know."""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from json import dumps, loads
from pathlib import Path

import numpy as np
import pytest
from mediagen.v1 import image_pb2 as pb

import server.families
from server.catalog import Catalog, read_catalog
from server.engines.port import Array, Spec, Tensors
from server.families.base import Size
from server.families.card import Card
from server.levels import Scheduler
from server.pipeline import Picture, generate
from server.request import plan
from server.samplers import SAMPLERS
from server.samplers.base import Estimate, Sampler, Sampling, Step, once_each_level

TOY_FAMILY = '''
"""A family whose text is one number and whose picture is its latents."""

import numpy as np

from server.engines.port import Port, Spec
from server.families.base import Family, Network, Posterior, Size, Stage, Text
from server.families.card import Card
from server.samplers import SAMPLERS


def engines(card):
    latent = ("rows", card.latent_channels, "height", "width")
    word = Port("word", "float32", ("rows", 1))
    words = Spec(f"{card.name}_words", (Port("ids", "int64", ("rows", 77)),), (word,), max_rows=16)
    sample, timestep = Port("sample", "float32", latent), Port("timestep", "float32", ("rows",))
    net = Spec(f"{card.name}_net", (sample, timestep, word), (Port("prediction", "float32", latent),), max_rows=16)
    return words, net


def texts(card):
    return (Text(f"{card.name}_words", "prompt", 1),)


async def condition(plan, card, run):
    words, net = engines(card)
    (text,) = texts(card)
    ids = np.array([prompt.chunks[0].ids for prompt in plan.rows(text)], np.int64)
    return (Stage((Network(net, await run(words, {"ids": ids}), plan.evaluations),), plan.walked, told=False),)


async def encode(pixels, visible, card, run):
    mean = np.repeat(pixels.transpose(2, 0, 1)[:1] / np.float32(127.5) - 1, card.latent_channels, axis=0)
    return Posterior(mean, np.zeros_like(mean))


async def decode(latents, card, run):
    return (np.clip(latents[:3], -1, 1) * 127 + 128).astype(np.uint8).transpose(1, 2, 0)


FAMILY = Family(
    name="toy",
    card=Card,
    sizes=(Size(64, 48),),
    default_size=Size(64, 48),
    refuses=lambda card: frozenset({"prompt_2"}),
    samplers=SAMPLERS,
    engines=engines,
    templates=lambda card: (),
    executions=lambda plan, card: {spec.name: 1 for spec in engines(card)},
    most_skipped=lambda card: 0,
    first_step=lambda steps, strength: int(steps * (1 - strength)),
    texts=texts,
    condition=condition,
    encode=encode,
    decode=decode,
)
'''


@pytest.fixture
def toy_catalog(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalog]:
    """A model repository with a checkpoint of a family that is one file more in the folder of families."""
    folder = tmp_path / "families"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY_FAMILY)
    monkeypatch.setattr(server.families, "__path__", [*server.families.__path__, str(folder)])
    scheduler = loads((repository / "sd15.json").read_text())["scheduler"]
    card = Card("toy", "toy", "a toy", "nowhere", 4, 1, Scheduler(**scheduler), inpainting=False, safety_checker=False)
    models = tmp_path / "models"
    (models / "toy_words").mkdir(parents=True)
    shutil.copy(repository / "sd15_text_encoder" / "tokenizer.json", models / "toy_words")
    (models / "toy.json").write_text(dumps(asdict(card)))
    yield read_catalog(models)
    sys.modules.pop("server.families.toy", None)


async def networks(spec: Spec, inputs: Tensors) -> Mapping[str, Array]:
    """What the toy's engines compute."""
    spec.check(inputs)
    match spec.name:
        case "toy_words":
            return {"word": inputs["ids"].mean(axis=1, keepdims=True, dtype=np.float32)}
        case "toy_net":
            return {"prediction": inputs["sample"] * np.float32(0.5)}
    raise AssertionError(spec.name)


async def test_a_family_that_is_one_new_file_draws_through_the_same_pipeline(toy_catalog: Catalog) -> None:
    made = plan(pb.GenerateRequest(engine="toy", prompt="anything", steps=3, seed=1), toy_catalog)
    assert made.size == Size(64, 48)
    pictures = [event async for event in generate(made, networks) if isinstance(event, Picture)]
    assert pictures[0].data.startswith(b"\xff\xd8")  # JPEG


async def test_a_sampler_that_is_one_line_more_in_the_registry_is_planned_and_run(
    toy_catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def jump(x: Array, steps: Sequence[Step], noise: object) -> Sampling:
        estimate: Estimate = yield x, steps[0].here
        asked.append(float(np.abs(estimate.x).max()))
        return estimate.clean

    toy = Sampler(
        name="LMS",
        paper="none: the first guess is the picture",
        order=1,
        max_steps=7,
        trajectory=SAMPLERS["DDIM"].trajectory,
        evaluations=once_each_level,
        run=jump,
    )
    monkeypatch.setitem(SAMPLERS, "LMS", toy)  # type: ignore[arg-type]  # a Mapping to everyone else
    made = plan(pb.GenerateRequest(engine="toy", prompt="x", steps=1, sampler=pb.SAMPLER_LMS, seed=1), toy_catalog)
    assert made.sampler is toy
    pictures = [event async for event in generate(made, networks) if isinstance(event, Picture)]
    assert len(asked) == len(pictures) == 1
