"""What lies in the model repository is there at every start, for everybody, and is read only when it must be."""

import hashlib
import os
import resource
from pathlib import Path

import pytest
from assets.conftest import bring, files

from server.assets.asset import DEPLOYMENT, AssetType, BadAsset, Facts
from server.assets.deployment import bring_in
from server.assets.faults import NoSuchAsset, NotOwner
from server.assets.library import Library
from server.assets.mending import recover
from server.assets.store import Wanted


def kind(path: Path) -> AssetType:
    """By the name, here."""
    if path.stem.startswith("odd"):
        raise BadAsset("it is nothing")
    return AssetType.CONTROLNET if "canny" in path.stem else AssetType.LORA


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A repository's folder with two assets."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "neon.safetensors").write_bytes(b"neon")
    (folder / "my-canny.safetensors").write_bytes(b"canny")
    return folder


def test_they_are_everybodys_and_nobodys_to_delete(library: Library, own: Path) -> None:
    bring_in(library, own, kind, "1")
    shelf = library.shelf("ann")
    neon, canny = shelf.find("neon", AssetType.LORA), shelf.find("my-canny", AssetType.CONTROLNET)
    assert neon is not None
    assert canny is not None
    assert (neon.owner, neon.public, neon.size_bytes) == (DEPLOYMENT, True, 4)
    assert canny.facts.preprocessor == "canny"
    assert shelf.path(neon).read_bytes() == b"neon"
    for tenant in ("ann", "default"):
        with pytest.raises(NotOwner):
            library.delete(tenant, "neon")


def test_a_second_start_reads_no_file_and_changes_nothing(library: Library, own: Path) -> None:
    bring_in(library, own, kind, "1")
    before = library.page("ann", Wanted(), None, 9)

    def never(path: Path) -> AssetType:
        raise AssertionError(path)

    bring_in(library, own, never, "1")
    assert library.page("ann", Wanted(), None, 9) == before


def test_a_file_that_changed_is_another_asset_and_one_that_went_is_none(library: Library, own: Path) -> None:
    bring_in(library, own, kind, "1")
    (own / "neon.safetensors").unlink()
    (own / "my-canny.safetensors").unlink()
    (own / "neon.safetensors").write_bytes(b"other neon")
    bring_in(library, own, kind, "1")
    (row,) = library.page("ann", Wanted(), None, 9)
    assert library.shelf("ann").path(row.asset).read_bytes() == b"other neon"
    assert len(files(library)) == 1
    (own / "neon.safetensors").unlink()
    bring_in(library, own, kind, "1")
    assert files(library) == []


def test_other_engines_or_another_time_change_facts_and_not_the_asset(library: Library, own: Path) -> None:
    bring_in(library, own, kind, "1")
    before = library.get("ann", "neon")
    library.inspect = lambda path, type: Facts(("new",), "sd15", (), 0, "", "")
    bring_in(library, own, kind, "2")
    assert library.get("ann", "neon").facts.engines == ("new",)
    os.utime(own / "neon.safetensors", ns=(1, 1))
    bring_in(library, own, kind, "2")
    assert library.get("ann", "neon").id == before.id
    assert len(files(library)) == 2


def test_what_is_no_asset_is_left_out_and_logged(library: Library, own: Path, caplog: pytest.LogCaptureFixture) -> None:
    (own / "odd.safetensors").write_bytes(b"odd")
    (own / ".hidden.safetensors").write_bytes(b"x")
    (own / "bad.safetensors").write_bytes(b"bad")
    (own / "notes.txt").write_text("no asset")
    bring_in(library, own, kind, "1")
    assert library.count("ann", Wanted()) == 2
    assert "odd.safetensors is left out: it is nothing" in caplog.text
    assert "bad.safetensors is left out: it is bad" in caplog.text
    assert ".hidden.safetensors is left out" in caplog.text
    assert len(files(library)) == 2


def test_what_a_tenant_brought_stays_and_comes_first(library: Library, own: Path) -> None:
    mine = bring(library, b"mine", "neon")
    bring_in(library, own, kind, "1")
    assert library.shelf("ann").find("neon", AssetType.LORA) == mine
    library.delete("ann", "neon")
    assert library.get("ann", "neon").owner == DEPLOYMENT


def test_a_folder_that_is_not_there_has_nothing(library: Library, tmp_path: Path) -> None:
    bring_in(library, tmp_path / "nowhere", kind, "1")
    with pytest.raises(NoSuchAsset):
        library.get("ann", "neon")


def test_who_writes_over_a_file_changes_no_asset_before_the_next_start(library: Library, own: Path) -> None:
    bring_in(library, own, kind, "1")
    before = library.get("ann", "neon")
    with (own / "neon.safetensors").open("r+b") as file:  # as `cp` does
        file.write(b"NEON")
    assert library.shelf("ann").path(before).read_bytes() == b"neon"
    bring_in(library, own, kind, "1")
    after = library.get("ann", "neon")
    assert after.sha256 == hashlib.sha256(b"NEON").hexdigest()
    assert library.shelf("ann").path(after).read_bytes() == b"NEON"
    assert len(files(library)) == 2


def test_what_finds_no_room_is_left_out_and_the_others_are_there(
    library: Library, own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (own / "my-canny.safetensors").write_bytes(bytes(3_000_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    try:
        bring_in(library, own, kind, "1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "my-canny.safetensors is left out: the disk of the asset library is full" in caplog.text
    assert [row.asset.name for row in library.page("ann", Wanted(), None, 9)] == ["neon"]
    assert len(files(library)) == 1


def test_an_asset_whose_file_was_lost_is_brought_in_again(library: Library, own: Path) -> None:
    bring_in(library, own, kind, "1")
    library.shelf("ann").path(library.get("ann", "neon")).unlink()
    recover(library)
    bring_in(library, own, kind, "1")
    assert library.shelf("ann").path(library.get("ann", "neon")).read_bytes() == b"neon"
