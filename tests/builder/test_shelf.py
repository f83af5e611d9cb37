"""What is on disk, what goes first, and what a killed builder leaves."""

import os
from pathlib import Path

import pytest

from server.builder.faults import NoDisk
from server.builder.shelf import MANIFEST, Shelf


def variant(folder: Path, name: str, size: int, used: float) -> Path:
    """A variant of so many bytes, last used then."""
    made = folder / name
    (made / "1").mkdir(parents=True)
    (made / "1" / "changed.safetensors").write_bytes(b"x" * size)
    manifest = made / MANIFEST
    manifest.touch()
    os.utime(manifest, (used, used))
    return made


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_least_recently_used_make_room_and_those_to_keep_do_not(tmp_path: Path) -> None:
    for used, name in enumerate("abcd"):
        variant(tmp_path, name, 100, used)
    shelf = Shelf(tmp_path, 250)
    assert shelf.touch("b") == 100  # used now
    shelf.make_room("d", {"a"})
    assert names(tmp_path) == {"a", "d"}
    shelf.make_room("d", ())
    assert names(tmp_path) == {"a", "d"}


def test_what_finds_no_room_is_not_kept(tmp_path: Path) -> None:
    for used, name in enumerate("ab"):
        variant(tmp_path, name, 100, used)
    shelf = Shelf(tmp_path, 150)
    with pytest.raises(NoDisk, match=r"variant b takes 100 bytes .* may take 150 together.*MEDIAGEN_VARIANT_DISK"):
        shelf.make_room("b", {"a"})
    assert names(tmp_path) == {"a"}


def test_what_is_loaded_is_told_and_not_removed_and_only_as_much_of_it_as_is_needed(tmp_path: Path) -> None:
    for used, name in enumerate("abcde"):
        variant(tmp_path, name, 100, used)
    shelf = Shelf(tmp_path, 300)
    assert shelf.make_room("e", {"b"}, ["c", "b", "gone", "a"]) == ["c"]
    assert names(tmp_path) == {"a", "b", "c", "e"}
    assert shelf.make_room("e", {"a", "b"}, ["a"]) == []
    assert names(tmp_path) == {"a", "b", "e"}
    shelf = Shelf(tmp_path, 100)
    with pytest.raises(NoDisk):
        shelf.make_room("e", {"b"}, ["a"])
    assert names(tmp_path) == {"a", "b"}


def test_what_is_still_in_use_is_younger_than_what_is_not(tmp_path: Path) -> None:
    for used, name in enumerate("abcd"):
        variant(tmp_path, name, 100, used)
    shelf = Shelf(tmp_path, 100)
    shelf.are_used(["b", "nowhere", "a"])
    left = []
    while shelf.drop_oldest(()):
        left.append("".join(sorted(names(tmp_path))))
    assert left == ["abd", "ab", "a", ""]


def test_what_is_shared_with_the_repository_takes_nothing_and_copies_count_once(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"x" * 1000)
    folder = tmp_path / "variants"
    os.link(weights, variant(folder, "linked", 10, 1) / "1" / "weights.safetensors")
    shared = folder / "base" / "copy.safetensors"
    shared.parent.mkdir()
    shared.write_bytes(b"x" * 100)
    for name in ("one", "two"):
        os.link(shared, variant(folder, name, 10, 2) / "1" / "weights.safetensors")
    shelf = Shelf(folder, 130)
    assert [shelf.touch(name) for name in ("linked", "one", "two", "none")] == [10, 10, 10, None]
    os.utime(folder / "linked" / MANIFEST, (1, 1))
    shelf.make_room("two", ())
    assert names(folder) == {"base", "linked", "one", "two"}
    variant(folder, "three", 1, 3)
    shelf.make_room("three", ())
    assert names(folder) == {"base", "one", "two", "three"}


def test_what_a_killed_builder_leaves_is_removed_at_the_next_start(tmp_path: Path) -> None:
    variant(tmp_path, "whole", 10, 1)
    variant(tmp_path, ".building-x", 10, 1)
    variant(tmp_path, ".gone-y", 10, 1)
    (variant(tmp_path, "half", 10, 1) / MANIFEST).unlink()
    shared = tmp_path / "base" / "nobodys.safetensors"
    shared.parent.mkdir()
    shared.touch()
    Shelf(tmp_path, 100)
    assert names(tmp_path) == {"whole", "base"}
    assert not shared.exists()
