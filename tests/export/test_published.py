"""Which checkpoint a command line means: the published ones, pinned, and what takes their place."""

import re
from pathlib import Path

import pytest

from export import ExportError
from export.__main__ import main
from export.checkpoint import Checkpoint, needed_files
from export.published import PUBLISHED
from export.recipes import sdxl

# Of the published SDXL repository, which holds its weights in many forms.
SDXL = """
README.md model_index.json scheduler/scheduler_config.json sd_xl_base_1.0.safetensors text_encoder/config.json
text_encoder/flax_model.msgpack text_encoder/model.fp16.safetensors text_encoder/model.onnx
text_encoder/model.safetensors text_encoder/openvino_model.bin text_encoder_2/config.json
text_encoder_2/model.fp16.safetensors text_encoder_2/model.onnx_data text_encoder_2/model.safetensors
tokenizer/merges.txt tokenizer/special_tokens_map.json tokenizer/tokenizer_config.json tokenizer/vocab.json
tokenizer_2/merges.txt tokenizer_2/special_tokens_map.json tokenizer_2/tokenizer_config.json tokenizer_2/vocab.json
unet/config.json unet/diffusion_flax_model.msgpack unet/diffusion_pytorch_model.fp16.safetensors
unet/diffusion_pytorch_model.safetensors unet/model.onnx unet/openvino_model.bin vae/config.json
vae/diffusion_pytorch_model.fp16.safetensors vae/diffusion_pytorch_model.safetensors vae_1_0/config.json
vae_1_0/diffusion_pytorch_model.safetensors vae_decoder/model.onnx vae_encoder/config.json
""".split()  # noqa: SIM905  wrapped text reads better than quoted lines

Opened = list[tuple[str, str | None, tuple[str, ...]]]
BASE = ("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b")
REFINER = ("stabilityai/stable-diffusion-xl-refiner-1.0", "5d4cfe854c9a9a87939ff3653551c2b3c99a4356")
PARTS = ("text_encoder", "text_encoder_2", "image_encoder", "unet", "vae")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """What the command opens, in order; nothing is fetched, and the export ends with the last."""
    found: Opened = []

    def open_checkpoint(place: str, revision: str | None, components: tuple[str, ...]) -> Checkpoint:
        found.append((place, revision, components))
        return Checkpoint(Path("nowhere"), place)

    monkeypatch.setattr("export.__main__.open_checkpoint", open_checkpoint)
    return found


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], [(*BASE, PARTS), (*REFINER, ("unet",))]),
        (["--refiner", "none"], [(*BASE, PARTS)]),
        (["--revision", "main"], [(BASE[0], "main", PARTS), (*REFINER, ("unet",))]),
        (["--refiner", "my/own"], [(*BASE, PARTS), ("my/own", None, ("unet",))]),
        (["--checkpoint", "my/base"], [("my/base", None, PARTS)]),
        (
            ["--checkpoint", "my/base", "--refiner", "my/own", "--refiner-revision", "v1"],
            [("my/base", None, PARTS), ("my/own", "v1", ("unet",))],
        ),
    ],
)
def test_the_published_base_and_refiner_are_what_a_bare_command_renders(
    arguments: list[str], expected: Opened, opened: Opened, tmp_path: Path
) -> None:
    assert main(["sdxl", "--out", str(tmp_path / "out"), *arguments]) == 1, "there is nothing behind the places"
    assert opened == expected


def test_ssd_is_a_checkpoint_of_sdxls_recipe_without_a_refiner(opened: Opened, tmp_path: Path) -> None:
    assert main(["ssd", "--out", str(tmp_path / "out")]) == 1
    assert opened == [("segmind/SSD-1B", "60987f37e94cd59c36b1cba832b9f97b57395a10", PARTS)]


@pytest.mark.parametrize("given", [[], ["--checkpoint", "my/own"]])
def test_only_the_published_one_is_known_to_predict_noise(
    given: list[str], opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def card(checkpoint: Checkpoint, name: str, title: str, prediction_type: str | None) -> None:
        asked.append(prediction_type)
        raise ExportError("enough")

    monkeypatch.setattr("export.recipes.sd15.card", card)
    assert main(["sd15", "--out", str(tmp_path / "out"), *given]) == 1
    assert asked == [None if given else "epsilon"]


def test_every_revision_is_a_commit() -> None:
    for published in PUBLISHED.values():
        for place in (published.checkpoint, published.refiner):
            if place is not None:
                assert re.fullmatch(r"[0-9a-f]{40}", place.revision)


def test_the_help_shows_the_published_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for published in PUBLISHED.values():
        assert f"{published.checkpoint.repository} at {published.checkpoint.revision[:12]}" in shown


def test_of_the_published_repository_only_what_is_needed_is_downloaded() -> None:
    parts = tuple(part for part in sdxl.COMPONENTS if "/" not in part)
    needed = needed_files(SDXL, parts)
    assert len(needed) == len(set(needed)) == 1 + 1 + 8 + 2 * (len(parts) - 1)  # no image encoder
    weights = {name for name in needed if not name.endswith((".json", ".txt"))}
    assert weights == {name for name in SDXL if name.endswith(".fp16.safetensors")}
