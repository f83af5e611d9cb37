"""Tiny checkpoints with random weights, SD 1.5's rendered repository, and copies to damage."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import change_json, write_refiner, write_sd15, write_sdxl
from parity import tiny_sd3

from export.checkpoint import Checkpoint, open_checkpoint
from export.recipes import sd15
from export.repository import export


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the layout of diffusers, half precision. Shared: never write into it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_sd15(folder)
    return folder


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL's base. Shared: never write into it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "base"
    write_sdxl(folder)
    return folder


@pytest.fixture(scope="session")
def refiner_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL's refiner. Shared: never write into it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "refiner"
    write_refiner(folder)
    return folder


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD3 with T5. Shared: never write into it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "sd3"
    tiny_sd3.write(folder, t5=True)
    return folder


@pytest.fixture(scope="session")
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    return open_checkpoint(str(checkpoint_folder), None, tuple(sd15.COMPONENTS))


@pytest.fixture
def changed(checkpoint_folder: Path, tmp_path: Path) -> Callable[..., Checkpoint]:
    """A copy of the checkpoint; `changed("unet/config.json", in_channels=9)` changes fields of a JSON file in it."""
    folder = tmp_path / "changed"
    shutil.copytree(checkpoint_folder, folder)

    def change(name: str | None = None, **fields: object) -> Checkpoint:
        if name is not None:
            change_json(folder / name, **fields)
        return open_checkpoint(str(folder), None, tuple(sd15.COMPONENTS))

    return change


@pytest.fixture(scope="session")
def rendered(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, exported once for all tests (20 seconds, most of it torch tracing the UNet)."""
    folder = tmp_path_factory.mktemp("rendered") / "repository"
    card = sd15.card(checkpoint, "tiny", "a tiny one", None)
    export(sd15, checkpoint, card, folder, lambda text: None)
    return folder
