"""The safety stage: what the classifier is shown, what its answer means, and that nothing removed gets out."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engines.fake import FakeEngines
from mediagen.v1 import image_pb2 as pb
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from server.catalog import Catalog, read_catalog
from server.clip import normalised
from server.engines.port import EngineFault, Spec, Tensors
from server.families.base import Run
from server.pipeline import Finished, Picture, generate
from server.request import plan
from server.safety import (
    LEAST_MARGIN,
    SIDE,
    NotChecked,
    Passed,
    Removed,
    Safety,
    Verdict,
    safety_checker,
    verdict,
    with_checker,
)
from server.scheduler import StepScheduler


@pytest.mark.parametrize("size", [(384, 704), (1216, 704), (512, 512), (640, 1536), (1344, 768), (224, 224)])
def test_the_classifier_is_shown_what_transformers_would_show_it(size: tuple[int, int]) -> None:
    random = np.random.RandomState(1)
    coarse = Image.fromarray(random.randint(0, 256, (24, 16, 3)).astype(np.uint8))
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BILINEAR))
    expected = CLIPImageProcessorPil()(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    found = normalised(pixels, SIDE)
    assert found.dtype == np.float32
    assert found.shape == (3, 224, 224)
    assert np.abs(found - expected).max() < 1e-5


def test_the_score_grows_with_the_margin_and_is_above_a_half_where_the_picture_is_removed() -> None:
    margins = [-2.0, -0.3, -0.01, LEAST_MARGIN - 1e-6, LEAST_MARGIN + 1e-6, 0.01, 0.3, 2.0]
    verdicts = [verdict(margin) for margin in margins]
    assert [type(found) for found in verdicts] == [Passed] * 4 + [Removed] * 4
    scores = [found.score for found in verdicts]
    assert scores == sorted(set(scores))
    assert all(0 <= score <= 1 for score in scores)
    assert scores[3] < 0.5 < scores[4]


def answering(margin: float) -> Run:
    """A classifier that says always the same."""

    async def run(spec: Spec, inputs: Tensors) -> Mapping[str, np.ndarray]:
        spec.check(inputs)
        return {"margin": np.array([margin], np.float32)}

    return run


@pytest.mark.parametrize("margin", [float("nan"), float("inf")])
async def test_an_answer_that_is_no_number_lets_nothing_through(catalog: Catalog, margin: float) -> None:
    card = catalog["sd15"].card
    with pytest.raises(EngineFault, match="cannot be let through"):
        await with_checker(card).judge(np.zeros((704, 384, 3), np.uint8), card, answering(margin))


def checked_repository(repository: Path, folder: Path) -> Path:
    """SD 1.5's card, which says that there is a checker, and SDXL's, which says that there is none."""
    for name in ("sd15", "sdxl"):
        card = json.loads((repository / f"{name}.json").read_text())
        (folder / f"{name}.json").write_text(json.dumps({**card, "safety_checker": name == "sd15"}))
        for path in repository.glob(f"{name}_text_encoder*"):
            (folder / path.name).symlink_to(path)
    return folder


def test_the_stage_is_on_where_it_was_asked_for_and_is_one_more_network(repository: Path, tmp_path: Path) -> None:
    folder = checked_repository(repository, tmp_path)
    off, on = read_catalog(folder)["sd15"], read_catalog(folder, ("sd15",))["sd15"]
    assert on.specs == (*off.specs, safety_checker(on.card))
    assert off.safety.specs == ()


def test_engines_that_cannot_be_checked_are_named_at_the_start(repository: Path, tmp_path: Path) -> None:
    folder = checked_repository(repository, tmp_path)
    with pytest.raises(ValueError, match=r"MEDIAGEN_SAFETY names sd9; this repository has sd15, sdxl"):
        read_catalog(folder, ("sd15", "sd9"))
    with pytest.raises(ValueError, match=r"MEDIAGEN_SAFETY names sdxl, .* holds no safety checker for it: render one"):
        read_catalog(folder, ("sd15", "sdxl"))


async def test_a_removed_picture_has_no_data_and_the_others_come_out(
    catalog: Catalog, fake_engines: FakeEngines
) -> None:
    verdicts: list[Verdict] = [Passed(0.1), Removed(0.9), NotChecked()]

    async def judge(pixels: np.ndarray, card: object, run: Run) -> Verdict:
        assert pixels.shape == (704, 384, 3)
        return verdicts.pop(0)

    engine = replace(catalog["sd15"], safety=Safety(judge, ()))
    request = pb.GenerateRequest(engine="sd15", prompt="x", steps=1, width=384, height=704, num_images=3)
    what = plan(request, {"sd15": engine})
    events = [event async for event in generate(what, StepScheduler(fake_engines).run)]
    pictures = [event for event in events if isinstance(event, Picture)]
    assert {type(picture.verdict): len(picture.data) > 0 for picture in pictures} == {
        Passed: True,
        Removed: False,
        NotChecked: True,
    }
    assert isinstance(events[-1], Finished)


async def test_when_all_pictures_are_removed_the_request_ends_well(catalog: Catalog, fake_engines: FakeEngines) -> None:
    async def judge(pixels: np.ndarray, card: object, run: Run) -> Verdict:
        return Removed(0.9)

    engine = replace(catalog["sd15"], safety=Safety(judge, ()))
    request = pb.GenerateRequest(engine="sd15", prompt="x", steps=1, width=384, height=704)
    events = [event async for event in generate(plan(request, {"sd15": engine}), StepScheduler(fake_engines).run)]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert "encoding" in finished.milliseconds
