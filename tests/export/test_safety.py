"""A safety checker of the real architecture, exported beside an engine and run, decides as diffusers does."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import OnlyChecker, change_json, write_safety_checker
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file

from export import ExportError
from export.__main__ import main
from export.checkpoint import Checkpoint, open_component
from export.published import PUBLISHED
from export.recipes import safety, sd15
from export.repository import export
from server.clip import normalised
from server.engines import golden
from server.engines.local import LocalEngines
from server.families.sd15 import engines
from server.safety import SIDE, Removed, safety_checker, verdict, with_checker


def pictures() -> list[np.ndarray]:
    """Flat, striped, and of noise; each height width 3, uint8."""
    random = np.random.RandomState(3)
    stripes = np.zeros((320, 256, 3), np.uint8)
    stripes[::16] = stripes[1::16] = (250, 200, 20)
    return [
        np.full((256, 384, 3), (200, 30, 30), np.uint8),
        stripes,
        random.randint(0, 256, (300, 300, 3)).astype(np.uint8),
        np.full((256, 256, 3), 250, np.uint8),
    ]


def summary(checker: StableDiffusionSafetyChecker, pixels: np.ndarray) -> torch.Tensor:
    """What the tower makes of a picture: width, of length 1."""
    with torch.no_grad():
        pooled = checker.vision_model(torch.from_numpy(normalised(pixels, SIDE))[None])[1]
        return torch.nn.functional.normalize(checker.visual_projection(pooled))[0]


@pytest.fixture(scope="module")
def checker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that removes the second of the pictures by a concept, the third because a special concept raises caution, and
    lets the others pass."""
    folder = tmp_path_factory.mktemp("checker") / "safety_checker"
    write_safety_checker(folder)
    checker = StableDiffusionSafetyChecker.from_pretrained(folder, torch_dtype=torch.float32)
    first, second, third, _ = (summary(checker, picture) for picture in pictures())
    state = checker.state_dict()
    state["concept_embeds"][0], state["concept_embeds_weights"][0] = second, 0.5 + float(second @ first) / 2
    state["concept_embeds"][1], state["concept_embeds_weights"][1] = third, float(third @ third) + 0.005
    state["special_care_embeds"][0], state["special_care_embeds_weights"][0] = third, 0.5 + float(third @ first) / 2
    checker.half().save_pretrained(folder)
    return folder


def test_the_command_renders_it_beside_the_family_and_the_card_says_so(
    checkpoint_folder: Path, checker_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[Any] = []
    monkeypatch.setattr("export.__main__.export", lambda *given: rendered.append(given) or [])
    arguments = ["sd15", "--checkpoint", str(checkpoint_folder), "--safety-checker", str(checker_folder)]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    ((recipe, checkpoint, card, *_),) = rendered
    assert card == replace(
        sd15.card(checkpoint, "sd15", PUBLISHED["sd15"].title, None),
        safety_checker=True,
        source="tiny + safety_checker",
    )
    assert [engine.spec for engine in recipe.recipes(checkpoint, card)] == [*engines(card), safety_checker(card)]
    assert {**sd15.COMPONENTS, safety.COMPONENT: StableDiffusionSafetyChecker} == recipe.COMPONENTS


async def test_the_exported_checker_decides_as_diffusers_does(
    checkpoint: Checkpoint, checker_folder: Path, tmp_path: Path
) -> None:
    recipe = safety.WithSafetyChecker(OnlyChecker(sd15.card(checkpoint, "tiny", "a tiny one", None)))
    joined = checkpoint.join(safety.COMPONENT, open_component(str(checker_folder), None, safety.COMPONENT))
    card = recipe.card(joined, "tiny", "a tiny one", None)
    (row,) = export(recipe, joined, card, tmp_path, lambda text: None)
    assert row.passed
    spec = safety_checker(card)
    assert f"| {spec.name} " in (tmp_path / "tiny.parity.md").read_text()
    reference = StableDiffusionSafetyChecker.from_pretrained(checker_folder, torch_dtype=torch.float32)
    home = LocalEngines(tmp_path, [spec])
    try:
        await home.load(spec.name)
        await golden.check(home, tmp_path, [spec])

        async def run(network: object, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return await home.run(spec.name, inputs)

        removed = []
        for picture in pictures():
            shown = torch.from_numpy(normalised(picture, SIDE))[None]
            _, (told,) = reference(images=np.zeros((1, 8, 8, 3), np.float32), clip_input=shown)
            (margin,) = (await home.run(spec.name, {"pixels": shown.numpy()}))["margin"]
            assert margin == pytest.approx(expected_margin(reference, picture), abs=1e-4)
            found = await with_checker(card).judge(picture, card, run)
            assert found == verdict(float(margin))
            removed.append(isinstance(found, Removed))
            assert removed[-1] == told
    finally:
        await home.close()
    assert removed == [False, True, True, False]


@torch.no_grad()
def expected_margin(reference: StableDiffusionSafetyChecker, picture: np.ndarray) -> float:
    """By the loops of diffusers, which do not tell it."""
    seen = summary(reference, picture)
    special = (
        torch.nn.functional.normalize(reference.special_care_embeds) @ seen - reference.special_care_embeds_weights
    )
    concepts = torch.nn.functional.normalize(reference.concept_embeds) @ seen - reference.concept_embeds_weights
    return float(concepts.max()) + (0.01 if any(round(float(margin), 3) > 0 for margin in special) else 0.0)


def test_a_checker_is_found_by_its_folder_and_in_a_checkpoint_that_has_it(checker_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / safety.COMPONENT).symlink_to(checker_folder)
    for place in (checker_folder, tmp_path):
        found = open_component(str(place), None, safety.COMPONENT)
        assert found.json("config.json")["vision_config"]["image_size"] == 224
    with pytest.raises(ExportError, match="v1 is a revision, for hub ids"):
        open_component(str(checker_folder), "v1", safety.COMPONENT)
    with pytest.raises(ExportError, match="neither a folder nor a hub id"):
        open_component("nowhere", None, safety.COMPONENT)


def test_a_published_checkers_names_are_understood(
    checker_folder: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """They were written by a library that nested the tower once more, with positions among the weights."""
    (tmp_path / "config.json").write_text((checker_folder / "config.json").read_text())
    ours = load_file(checker_folder / "model.safetensors")
    published = {f"vision_model.{name}" if name.startswith("vision_model.") else name: ours[name] for name in ours}
    published["vision_model.vision_model.embeddings.position_ids"] = torch.arange(50)[None]
    save_file(published, tmp_path / "model.safetensors", {"format": "pt"})
    from export.weights import load_component

    joined = checkpoint.join(safety.COMPONENT, Checkpoint(tmp_path, "published"))
    loaded = load_component(StableDiffusionSafetyChecker, joined, safety.COMPONENT).state_dict()
    assert all(torch.equal(loaded[name], ours[name].float()) for name in ours)


def test_what_is_no_checker_is_refused_in_a_sentence(
    checkpoint: Checkpoint, checker_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((checker_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    change_json(tmp_path / "config.json", vision_config={**config["vision_config"], "image_size": 336})
    joined = checkpoint.join(safety.COMPONENT, Checkpoint(tmp_path, "other"))
    with pytest.raises(ExportError, match="image_size 336, must be 224"):
        safety.WithSafetyChecker(sd15).card(joined, "tiny", "", None)
    with pytest.raises(SystemExit):
        main(["sd15", "--safety-checker-revision", "v1", "--out", str(tmp_path)])
    assert "name one with --safety-checker" in capsys.readouterr().err
