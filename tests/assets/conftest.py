"""A library in a folder of the test's, whose clock the test turns, and files that are looked at as far as it says."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.assets.asset import Asset, AssetType, BadAsset, Facts
from server.assets.library import Library
from server.assets.rules import Described
from server.assets.uploads import Upload

BUDGET = 10_000_000


def looked_at(path: Path, type: AssetType) -> Facts:
    """Files that begin with "bad" are refused."""
    content = path.read_bytes()
    if content.startswith(b"bad"):
        raise BadAsset("it is bad; send a good one")
    if content.startswith(b"bug"):
        raise KeyError("bug")
    family = "sdxl" if content.startswith(b"sdxl") else "sd15"
    engines = ("sdxl", "ssd") if family == "sdxl" else ("sd15",)
    return Facts(engines, family, ("unet",), 0, "", "")


@dataclass
class Clock:
    """Stands still until it is turned."""

    time: datetime = field(default_factory=lambda: datetime(2026, 1, 1, tzinfo=UTC))

    def __call__(self) -> datetime:
        return self.time

    def turn(self, **by: float) -> None:
        self.time += timedelta(**by)


def described(
    content: bytes, name: str = "style", type: AssetType = AssetType.LORA, *, public: bool = False
) -> Described:
    """As an honest sender says it."""
    return Described(name, type, len(content), hashlib.sha256(content).hexdigest(), public, "", "")


def bring(
    library: Library,
    content: bytes,
    name: str = "style",
    type: AssetType = AssetType.LORA,
    owner: str = "ann",
    *,
    public: bool = False,
) -> Asset:
    """The whole way at once."""
    asset = library.describe(owner, described(content, name, type, public=public))
    with Upload(library, asset.id, 0) as upload:
        upload.write(content)
        return upload.finish()


def files(library: Library) -> list[str]:
    """Everything in its folder but the database."""
    return sorted(
        str(path.relative_to(library.folder))
        for path in library.folder.rglob("*")
        if path.is_file() and not path.name.startswith("assets.sqlite")
    )


@pytest.fixture
def clock() -> Clock:
    """The library's."""
    return Clock()


@pytest.fixture
def library(tmp_path: Path, clock: Clock) -> Iterator[Library]:
    """Empty."""
    made = Library(tmp_path / "assets", looked_at, BUDGET, clock)
    yield made
    made.close()
