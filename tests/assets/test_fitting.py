"""What callers brought follows the engines that a deployment has."""

import asyncio
import resource
import threading
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from assets.conftest import BUDGET, bring, described, looked_at
from conftest import HANG_SECONDS

from server.assets import opened as opening
from server.assets.asset import AssetState, AssetType, BadAsset, Facts
from server.assets.fitting import fit_again
from server.assets.library import Library
from server.assets.opened import Looking, Opened, opened

NEVER = threading.Event()
FULL = 2**15  # bytes of SQLite's index of what is written: it has room, and no row more


def fits_none(path: Path, type: AssetType) -> Facts:
    raise BadAsset("it fits no engine")


def test_other_engines_change_what_an_asset_fits_and_nothing_else(library: Library) -> None:
    before = bring(library, b"1")
    library.against, library.inspect = "others", lambda path, type: replace(looked_at(path, type), engines=("new",))
    fit_again(library, NEVER)
    after = library.get("ann", "style")
    assert after == replace(before, facts=replace(before.facts, engines=("new",)))


def test_what_fits_nothing_any_more_stays_until_its_engine_is_back(library: Library) -> None:
    before = bring(library, b"1")
    library.against, library.inspect = "none", fits_none
    fit_again(library, NEVER)
    alone = library.get("ann", "style")
    assert (alone.state, alone.facts.engines) == (AssetState.READY, ())
    library.against, library.inspect = "back", looked_at
    fit_again(library, NEVER)
    assert library.get("ann", "style") == before


def test_equal_engines_cost_no_look(library: Library) -> None:
    bring(library, b"1")
    seen: list[Path] = []

    def look(path: Path, type: AssetType) -> Facts:
        seen.append(path)
        return looked_at(path, type)

    library.inspect = look
    fit_again(library, NEVER)
    assert seen == []
    library.against = "others"
    fit_again(library, NEVER)
    fit_again(library, NEVER)
    assert len(seen) == 1


def test_one_that_cannot_be_looked_at_keeps_none_from_it(library: Library, caplog: pytest.LogCaptureFixture) -> None:
    for content in (b"1", b"2", b"3"):
        bring(library, content, content.decode())
    library.shelf("ann").path(library.get("ann", "2")).unlink()

    def look(path: Path, type: AssetType) -> Facts:
        if path.read_bytes() == b"1":
            library.delete("ann", "1")
        return Facts(("new",), "sd15", ("unet",), 0, "", "")

    library.against, library.inspect = "others", look
    fit_again(library, NEVER)
    assert [library.get("ann", name).facts.engines for name in ("2", "3")] == [("sd15",), ("new",)]
    assert "(2) was not looked at again" in caplog.text
    assert "(1)" not in caplog.text


async def test_the_service_starts_at_once_and_what_was_brought_follows_its_engines(tmp_path: Path) -> None:
    folder, own = tmp_path / "library", tmp_path / "own"
    begun, free, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()

    def look(path: Path, type: AssetType) -> Facts:
        loop.call_soon_threadsafe(begun.set)
        assert free.wait(HANG_SECONDS)
        return Facts(("new",), "sd15", ("unet",), 0, "", "")

    def recognise(path: Path) -> AssetType:
        raise AssertionError(path)

    async with opened(folder, BUDGET, own, Looking(looked_at, recognise, "a")) as made:
        await asyncio.to_thread(bring, made.library, b"1")
    async with asyncio.timeout(HANG_SECONDS), opened(folder, BUDGET, own, Looking(look, recognise, "b")) as made:
        await begun.wait()
        assert made.library.get("ann", "style").facts.engines == ("sd15",)
        free.set()
    library = Library(folder, looked_at, BUDGET)  # leaving waited for the file that was looked at
    assert library.get("ann", "style").facts.engines == ("new",)
    library.close()


async def test_services_that_share_a_folder_do_not_remove_what_is_of_the_others_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(opening, "ASK_SECONDS", 0.01)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.safetensors").write_bytes(name.encode())

    def there(made: Opened) -> list[str]:
        return made.library.shelf("ann").names(AssetType.LORA)

    folder, looking = tmp_path / "library", Looking(looked_at, lambda path: AssetType.LORA, "a")
    async with AsyncExitStack() as one, AsyncExitStack() as other:
        await one.enter_async_context(opened(folder, BUDGET, tmp_path / "first", looking))
        assert "another service" not in caplog.text
        made = await other.enter_async_context(opened(folder, BUDGET, tmp_path / "second", looking))
        assert "another service" in caplog.text
        assert there(made) == ["first"]
        await one.aclose()
        async with asyncio.timeout(HANG_SECONDS):
            while there(made) != ["second"]:  # noqa: ASYNC110  # nobody tells of it
                await asyncio.sleep(0.01)


async def test_a_folder_that_is_no_library_is_told_by_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ValueError, match=r"MEDIAGEN_ASSETS is .*/file, which is of no use"):
        async with opened(tmp_path / "file", BUDGET, tmp_path, Looking(looked_at, lambda path: AssetType.LORA, "a")):
            pass


async def test_a_full_disk_keeps_no_service_from_its_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    library = Library(tmp_path, looked_at, BUDGET)
    library.shelf("ann").path(bring(library, b"1")).unlink()  # to be told of at the start: a row to be written
    while (tmp_path / "assets.sqlite-wal").stat().st_size <= FULL:
        library.describe("ann", described(b"1", "another"))
        library.delete("ann", "another")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, before[1]))
    try:
        async with opened(tmp_path, BUDGET, tmp_path / "own", Looking(looked_at, lambda path: AssetType.LORA, "a")):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        library.close()
    assert "the asset library was not put in order" in caplog.text
