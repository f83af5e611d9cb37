"""What `python -m export` says of a checkpoint it cannot render: file, reason, what to do; it writes nothing."""

import json
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
import torch
from checkpoints import change_json
from safetensors.torch import load_file, save_file

from export import recipes
from export.__main__ import main
from export.published import PUBLISHED

# The parts of each checkpoint, those of the joined one behind its name.
PARTS = {
    "sd15": ("text_encoder", "unet", "vae"),
    "sdxl": ("text_encoder", "text_encoder_2", "unet", "vae", "refiner/unet"),
    "sd3": ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae"),
}
TOKENIZERS = {engine: ("tokenizer", "tokenizer_2") for engine in ("sdxl", "sd3")} | {"sd15": ("tokenizer",)}


@pytest.fixture
def folders(
    checkpoint_folder: Path, sdxl_folder: Path, refiner_folder: Path, sd3_folder: Path, tmp_path: Path
) -> dict[str, Path]:
    """Copies to be damaged."""
    found = {"sd15": checkpoint_folder, "sdxl": sdxl_folder, "refiner": refiner_folder, "sd3": sd3_folder}
    for name, folder in found.items():
        shutil.copytree(folder, tmp_path / name)
    return {name: tmp_path / name for name in found}


def place(folders: dict[str, Path], engine: str, part: str) -> Path:
    """Where a part lies."""
    owner, _, name = part.rpartition("/")
    return folders[owner or engine] / name


def fault(folders: dict[str, Path], engine: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says on stderr, which must be one line; nothing may have been written."""
    out = folders["sd15"].parent / "repository"
    arguments = [engine, "--checkpoint", str(folders[engine]), "--out", str(out)]
    status = main([*arguments, *(["--refiner", str(folders["refiner"])] if engine == "sdxl" else [])])
    said = capsys.readouterr().err
    assert status == 1, "it was rendered"
    assert said.startswith("export: ")
    assert said.count("\n") == 1
    assert not out.exists()
    return said


def _weights(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def _first(tensors: dict[str, torch.Tensor], value: float) -> dict[str, torch.Tensor]:
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[0] = value
    return tensors


def _missing(folder: Path) -> tuple[Path, str]:
    shutil.rmtree(folder)
    return folder, "is missing: not a complete diffusers checkpoint"


def _no_config(folder: Path) -> tuple[Path, str]:
    (folder / "config.json").unlink()
    return folder / "config.json", "is missing: not a complete diffusers checkpoint"


def _config_of_nothing(folder: Path) -> tuple[Path, str]:
    (folder / "config.json").write_text("{")
    return folder / "config.json", "is not JSON"


def _nan(folder: Path) -> tuple[Path, str]:
    save_file(_first(load_file(_weights(folder)), float("nan")), _weights(folder))
    return _weights(folder), "holds NaN or infinity in"


def _infinite(folder: Path) -> tuple[Path, str]:
    save_file(_first(load_file(_weights(folder)), float("inf")), _weights(folder))
    return _weights(folder), "holds NaN or infinity in"


def _pickled(folder: Path) -> tuple[Path, str]:
    torch.save(load_file(_weights(folder)), folder / "pytorch_model.bin")
    _weights(folder).unlink()
    return folder, "has only pickles (pytorch_model.bin), which are never opened"


def _cut(folder: Path) -> tuple[Path, str]:
    content = _weights(folder).read_bytes()
    _weights(folder).write_bytes(content[: len(content) // 2])
    return _weights(folder), "is cut short"


def _cases(damages: tuple[Callable[[Path], tuple[Path, str]], ...]) -> Iterator[Any]:
    for engine, parts in PARTS.items():
        for part in parts:
            for damage in damages:
                yield pytest.param(engine, part, damage, id=f"{engine} {part} {damage.__name__.strip('_')}")


@pytest.mark.parametrize(
    ("engine", "part", "damage"),
    tuple(_cases((_missing, _no_config, _config_of_nothing, _nan, _infinite, _pickled, _cut))),
)
def test_a_damaged_part_is_named_with_the_reason(
    engine: str,
    part: str,
    damage: Callable[[Path], tuple[Path, str]],
    folders: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    blamed, reason = damage(place(folders, engine, part))
    said = fault(folders, engine, capsys)
    assert str(blamed) in said
    assert reason in said
    assert any(
        advice in said for advice in ("fetch or save the checkpoint again", "save the checkpoint as safetensors")
    )


@pytest.mark.parametrize("engine", PARTS)
def test_weights_of_another_shape_are_named(
    engine: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the first engine, for the sake of time; `test_weights.py` has a UNet's."""
    file = _weights(folders[engine] / "text_encoder")
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("fc1.weight"))
    save_file({**tensors, name: tensors[name][:, 1:].contiguous()}, file)
    said = fault(folders, engine, capsys)
    assert str(file) in said
    assert name.removeprefix("text_model.") in said
    assert "fetch or save the checkpoint again" in said


@pytest.mark.parametrize(
    ("engine", "folder"), [(engine, folder) for engine, folders in TOKENIZERS.items() for folder in folders]
)
def test_an_incomplete_tokenizer_is_named(
    engine: str, folder: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = folders[engine] / folder / "merges.txt"
    file.unlink()
    assert f"{file} is missing" in fault(folders, engine, capsys)


@pytest.mark.parametrize(("engine", "given"), [("sd15", "sdxl"), ("sdxl", "sd15")])
def test_a_checkpoint_of_another_family_is_told_by_its_index(
    engine: str, given: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    index = folders[given] / "model_index.json"
    said = fault({**folders, engine: folders[given]}, engine, capsys)
    assert f"{index} says it is a {json.loads(index.read_text())['_class_name']}" in said
    assert "give the checkpoint to its own family's export" in said


@pytest.mark.parametrize(("engine", "given"), [("sd15", "sdxl"), ("sdxl", "sd15")])
def test_a_unet_of_another_family_is_told_by_its_config(
    engine: str, given: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folders[given] / "unet/config.json", folders[engine] / "unet/config.json")
    said = fault(folders, engine, capsys)
    assert f"{engine} is not shaped like" in said or f"{engine} + refiner is not shaped like" in said
    assert "unet addition_embed_type is" in said


def test_a_base_and_a_refiner_that_changed_places_are_told(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folders["sdxl"] / "text_encoder_2", folders["refiner"] / "text_encoder_2")
    swapped = {**folders, "sdxl": folders["refiner"], "refiner": folders["sdxl"]}
    assert "is a refiner's UNet: give it with --refiner" in fault(swapped, "sdxl", capsys)
    assert "is a base's UNet, not a refiner's" in fault({**folders, "refiner": folders["sdxl"]}, "sdxl", capsys)


def test_an_export_that_fails_late_leaves_the_repository_as_it_was(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when the disk is full after the first engines."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "model.onnx")

    monkeypatch.setattr("export.graphs.trace", full)
    out = folders["sd15"].parent / "kept"
    out.mkdir()
    (out / "other.json").write_text("{}")
    assert main(["sd15", "--checkpoint", str(folders["sd15"]), "--out", str(out)]) == 1
    assert "No space left on device: 'model.onnx'" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["other.json"]


def test_every_familys_recipe_has_a_published_checkpoint_and_damaged_ones_here() -> None:
    names = [module.name for module in iter_modules(recipes.__path__)]
    found = {name for name in names if hasattr(import_module(f"{recipes.__name__}.{name}"), "FAMILY")}
    assert {published.family for published in PUBLISHED.values()} == found
    assert found == PARTS.keys()


def test_an_index_without_a_pipelines_name_is_judged_by_its_parts(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    change_json(folders["sd15"] / "model_index.json", _class_name="absent")
    change_json(folders["sd15"] / "unet/config.json", in_channels=8)
    assert "unet in_channels (9 where it inpaints) is 8" in fault(folders, "sd15", capsys)
