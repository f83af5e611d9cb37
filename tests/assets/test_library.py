"""Every state and its way; who sees what; what is left behind, which is nothing."""

import os
import resource
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from assets.conftest import BUDGET, Clock, bring, described, files, looked_at
from conftest import HANG_SECONDS

from server.assets import glance
from server.assets import library as keeping
from server.assets.asset import AssetState, AssetType, Facts, blob
from server.assets.faults import (
    BadUpload,
    Incomplete,
    LibraryFull,
    NameTaken,
    NoSuchAsset,
    NotOwner,
    NotUploading,
    Rejected,
    UploadRunning,
    WrongOffset,
)
from server.assets.library import Library
from server.assets.mending import recover, sweep
from server.assets.rows import Row
from server.assets.store import Wanted
from server.assets.uploads import Upload

CONTENT = bytes(range(256)) * 40


def test_an_asset_goes_from_its_description_to_ready_and_its_file_is_named_by_its_content(library: Library) -> None:
    asset = library.describe("ann", described(CONTENT))
    assert (asset.state, library.received(asset)) == (AssetState.READY_TO_UPLOAD, 0)
    with Upload(library, asset.id, 0) as upload:
        upload.write(CONTENT[:100])
        half = library.get("ann", "style")
        assert (half.state, library.received(half)) == (AssetState.UPLOADING, 100)
        upload.write(CONTENT[100:])
        ready = upload.finish()
    assert (ready.state, ready.facts.engines, ready.reason) == (AssetState.READY, ("sd15",), "")
    assert library.received(ready) == len(CONTENT)
    assert library.shelf("ann").path(ready).read_bytes() == CONTENT
    assert files(library) == [f"blobs/{ready.sha256[:2]}/{ready.sha256}.safetensors"]


def test_while_a_file_is_looked_at_the_asset_is_uploaded(tmp_path: Path) -> None:
    seen = []

    def look(path: Path, type: AssetType):  # type: ignore[no-untyped-def]
        seen.append(library.get("ann", "style").state)
        return looked_at(path, type)

    library = Library(tmp_path, look, BUDGET)
    bring(library, CONTENT)
    library.close()
    assert seen == [AssetState.UPLOADED]


def test_a_cut_upload_goes_on_where_it_ended(library: Library) -> None:
    id = library.describe("ann", described(CONTENT)).id
    with Upload(library, id, 0) as upload:
        upload.write(CONTENT[:1000])
    assert library.describe("ann", described(CONTENT)).id == id  # the same again is no other
    assert library.received(library.get("ann", id)) == 1000
    with Upload(library, id, 1000) as upload:
        upload.write(CONTENT[1000:])
        assert upload.finish().state is AssetState.READY


def test_bytes_may_be_sent_again_from_before_the_cut_and_not_from_behind_it(library: Library) -> None:
    id = library.describe("ann", described(CONTENT)).id
    with Upload(library, id, 0) as upload:
        upload.write(b"x" * 1000)
    with pytest.raises(WrongOffset, match="1000 bytes are here"):
        Upload(library, id, 1001)
    with pytest.raises(WrongOffset):
        Upload(library, id, -1)
    with Upload(library, id, 0) as upload:
        upload.write(CONTENT)
        assert upload.finish().state is AssetState.READY


def test_an_upload_that_ends_too_early_is_told_what_is_here_and_may_go_on(library: Library) -> None:
    id = library.describe("ann", described(CONTENT)).id
    with Upload(library, id, 0) as upload:
        upload.write(CONTENT[:7])
        with pytest.raises(Incomplete, match=f"7 of {len(CONTENT)} bytes are here"):
            upload.finish()
    assert library.get("ann", id).state is AssetState.UPLOADING
    with Upload(library, id, None) as upload:
        upload.write(CONTENT[7:])
        assert upload.finish().state is AssetState.READY


def test_bytes_beyond_the_described_end_the_upload_and_leave_none(library: Library) -> None:
    id = library.describe("ann", described(CONTENT)).id
    with Upload(library, id, 0) as upload:
        upload.write(CONTENT)
        with pytest.raises(BadUpload, match="more bytes"):
            upload.write(b"!")
    assert library.get("ann", id).state is AssetState.ERROR
    assert files(library) == []


def test_other_bytes_than_the_described_are_an_error_with_both_hashes_and_leave_none(library: Library) -> None:
    asset = library.describe("ann", described(CONTENT))
    with Upload(library, asset.id, 0) as upload:
        upload.write(CONTENT[::-1])
        with pytest.raises(BadUpload, match=asset.sha256):
            upload.finish()
    told = library.get("ann", asset.id)
    assert told.state is AssetState.ERROR
    assert asset.sha256 in told.reason
    assert files(library) == []


def test_a_refused_asset_keeps_its_row_and_reason_and_not_its_bytes(library: Library) -> None:
    with pytest.raises(Rejected, match="it is bad; send a good one"):
        bring(library, b"bad")
    told = library.get("ann", "style")
    assert (told.state, told.reason) == (AssetState.REJECTED, "it is bad; send a good one")
    assert files(library) == []
    with pytest.raises(NotUploading, match="it is bad"):
        Upload(library, told.id, 0)
    assert files(library) == []
    assert library.shelf("ann").find("style", AssetType.LORA) is None


def test_what_was_refused_or_failed_gives_way_to_another_of_its_name(library: Library) -> None:
    with pytest.raises(Rejected):
        bring(library, b"bad")
    assert bring(library, CONTENT).state is AssetState.READY
    with pytest.raises(NameTaken, match="you have an asset named style"):
        library.describe("ann", described(CONTENT))
    assert bring(library, CONTENT, owner="bob").state is AssetState.READY


def test_a_bug_while_looking_is_an_error_that_tells_nothing_of_the_inside(library: Library) -> None:
    with pytest.raises(KeyError):
        bring(library, b"bug")
    told = library.get("ann", "style")
    assert (told.state, told.reason) == (AssetState.ERROR, "the service failed to take it; its log says why")
    assert files(library) == []


def test_one_sender_at_a_time(library: Library) -> None:
    id = library.describe("ann", described(CONTENT)).id
    with Upload(library, id, 0):
        with pytest.raises(UploadRunning):
            Upload(library, id, 0)
        with pytest.raises(UploadRunning):
            library.describe("ann", described(CONTENT[1:]))
    other = library.describe("ann", described(CONTENT[1:]))
    assert other.id != id
    with pytest.raises(NoSuchAsset):
        library.get("ann", id)


def test_a_ready_asset_takes_no_bytes(library: Library) -> None:
    with pytest.raises(NotUploading, match="style is ready"):
        Upload(library, bring(library, CONTENT).id, 0)


def test_a_private_asset_is_nothing_to_another_tenant_and_the_text_is_that_of_nothing(library: Library) -> None:
    asset = bring(library, CONTENT)
    for asked in ("style", asset.id):
        for call in (library.get, library.delete):
            with pytest.raises(NoSuchAsset) as hidden:
                call("bob", asked)
            library_of_nobody = str(NoSuchAsset(asked))
            assert str(hidden.value) == library_of_nobody
    assert library.page("bob", Wanted(), None, 10) == []
    assert library.shelf("bob").find(asset.id, AssetType.LORA) is None
    assert library.shelf("bob").names(AssetType.LORA) == []


def test_a_public_asset_is_everybodys_to_use_and_its_owners_to_delete(library: Library) -> None:
    asset = bring(library, CONTENT, public=True)
    found = library.shelf("bob").find("style", AssetType.LORA)
    assert found == asset
    assert library.shelf("bob").names(AssetType.LORA) == ["style"]
    with pytest.raises(NotOwner, match="only its owner"):
        library.delete("bob", "style")
    assert library.delete("ann", "style").state is AssetState.DELETED
    assert library.shelf("bob").find("style", AssetType.LORA) is None


def test_a_public_asset_that_is_not_ready_is_its_owners_alone(library: Library) -> None:
    library.describe("ann", described(CONTENT, public=True))
    with pytest.raises(NoSuchAsset):
        library.get("bob", "style")
    assert library.get("ann", "style").public


def test_ones_own_comes_before_anothers_of_the_same_name_and_an_id_before_any_name(library: Library) -> None:
    public = bring(library, CONTENT, public=True)
    own = bring(library, b"own", owner="bob")
    assert library.shelf("bob").find("style", AssetType.LORA) == own
    assert library.shelf("eve").find("style", AssetType.LORA) == public
    bring(library, b"trap", name=public.id, owner="eve", public=True)
    assert library.shelf("bob").find(public.id, AssetType.LORA) == public


def test_an_asset_is_found_as_what_it_is_alone(library: Library) -> None:
    bring(library, CONTENT)
    assert library.shelf("ann").find("style", AssetType.VAE) is None


def test_equal_bytes_are_kept_once_and_go_with_the_last_who_has_them(library: Library) -> None:
    first, second = bring(library, CONTENT, "a"), bring(library, CONTENT, "b", owner="bob")
    assert len(files(library)) == 1
    library.delete("ann", "a")
    assert blob(library.folder, first.sha256).exists()
    library.delete("bob", "b")
    assert files(library) == []
    assert first.sha256 == second.sha256


def test_what_is_deleted_while_it_is_sent_ends_the_sender(library: Library) -> None:
    id = library.describe("ann", described(CONTENT)).id
    with Upload(library, id, 0) as upload:
        upload.write(CONTENT[:10])
        library.delete("ann", id)
        with pytest.raises(NoSuchAsset):
            upload.write(CONTENT[10:])
        with pytest.raises((NoSuchAsset, Incomplete)):
            upload.finish()
    assert files(library) == []


def test_what_is_deleted_while_it_is_looked_at_leaves_nothing(tmp_path: Path) -> None:
    def look(path: Path, type: AssetType):  # type: ignore[no-untyped-def]
        library.delete("ann", "style")
        return looked_at(path, type)

    library = Library(tmp_path, look, BUDGET)
    with pytest.raises(NoSuchAsset):
        bring(library, CONTENT)
    assert files(library) == []
    assert library.count("ann", Wanted()) == 0
    library.close()


def test_what_is_over_the_budget_is_refused_before_a_byte_and_leaves_nothing(library: Library) -> None:
    library.describe("ann", described(b"x" * 6_000_000, "first"))
    with pytest.raises(LibraryFull, match="4,000,000 bytes that are left of 10,000,000 bytes"):
        library.describe("bob", described(b"x" * 4_000_001, "second"))
    assert library.count("bob", Wanted()) == 0
    library.delete("ann", "first")
    library.describe("bob", described(b"x" * 4_000_001, "second"))


def test_a_tenant_has_so_many_assets_and_no_more(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "MAX_ASSETS", 2)
    for name in ("a", "b"):
        library.describe("ann", described(CONTENT, name))
    with pytest.raises(LibraryFull, match="as many as one may have"):
        library.describe("ann", described(CONTENT, "c"))
    library.describe("bob", described(CONTENT, "c"))


def test_what_the_disk_cannot_hold_is_refused_before_a_byte(tmp_path: Path) -> None:
    library = Library(tmp_path, looked_at, 2**60)
    asked = described(b"x")
    with pytest.raises(LibraryFull, match="free on the disk"):
        library.describe("ann", type(asked)(asked.name, asked.type, 2**50, asked.sha256, False, "", ""))
    assert library.count("ann", Wanted()) == 0
    library.close()


def test_a_disk_that_is_full_in_the_middle_is_told_and_leaves_no_bytes(library: Library) -> None:
    asset = library.describe("ann", described(bytes(3_000_000)))
    with Upload(library, asset.id, 0) as upload:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # Python ignores the signal: EFBIG is left
        try:
            upload.write(bytes(1_000_000))
            with pytest.raises(LibraryFull, match="disk"):
                upload.write(bytes(1_000_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = library.get("ann", asset.id)
    assert told.state is AssetState.ERROR
    assert "disk" in told.reason
    assert files(library) == []


def test_a_disk_that_takes_no_more_rows_is_told_and_the_library_goes_on(library: Library) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(LibraryFull, match="disk"):
            [library.describe("ann", described(CONTENT, f"a{i}")) for i in range(100)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert library.count("ann", Wanted()) == len(library.page("ann", Wanted(), None, 1000))
    assert bring(library, CONTENT, "later").state is AssetState.READY


def test_what_stands_still_goes_and_running_uploads_and_assets_stay(library: Library, clock: Clock) -> None:
    for name in ("described", "begun", "running"):
        id = library.describe("ann", described(CONTENT, name)).id
        if name == "begun":
            with Upload(library, id, 0) as upload:
                upload.write(CONTENT[:10])
    with pytest.raises(Rejected):
        bring(library, b"bad", "refused")
    bring(library, b"good", "ready")

    def names() -> set[str]:
        return {row.asset.name for row in library.page("ann", Wanted(), None, 9)}

    with Upload(library, library.get("ann", "running").id, 0):
        clock.turn(minutes=59)
        sweep(library)
        assert len(names()) == 5
        clock.turn(minutes=2)
        sweep(library)
        assert names() == {"begun", "running", "refused", "ready"}  # a description without a byte holds room
        clock.turn(hours=23)
        sweep(library)
        assert names() == {"running", "ready"}
    sweep(library)
    assert names() == {"ready"}


def test_an_upload_that_ends_while_others_are_swept_is_an_asset(
    library: Library, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = library.describe("ann", described(CONTENT)).id
    Upload(library, id, 0).close()
    clock.turn(days=2)
    look = library.store.in_state

    def and_then_it_ends(*states: AssetState, before: datetime | None = None) -> list[Row]:
        found = look(*states, before=before)
        if found:
            with Upload(library, id, 0) as upload:
                upload.write(CONTENT)
                upload.finish()
        return found

    monkeypatch.setattr(library.store, "in_state", and_then_it_ends)
    sweep(library)
    asset = library.get("ann", id)
    assert asset.state is AssetState.READY
    assert library.shelf("ann").path(asset).read_bytes() == CONTENT


def test_a_file_that_cannot_be_removed_is_logged_and_its_asset_is_gone(
    library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    path = library.shelf("ann").path(bring(library, CONTENT))
    path.unlink()
    path.mkdir()
    assert library.delete("ann", "style").state is AssetState.DELETED
    assert library.count("ann", Wanted()) == 0
    assert "a file of nobody is left" in caplog.text


def test_asking_whether_an_upload_runs_makes_no_file(library: Library) -> None:
    asset = library.describe("ann", described(CONTENT))
    assert not library.is_uploading(asset.id)
    assert files(library) == []


def test_a_controlnet_that_is_described_with_another_preprocessor_is_another_upload(library: Library) -> None:
    said = replace(described(CONTENT, type=AssetType.CONTROLNET), preprocessor="canny")
    first = library.describe("ann", said)
    second = library.describe("ann", replace(said, preprocessor="depth"))
    assert first.id != second.id
    assert library.describe("ann", replace(said, preprocessor="depth")).id == second.id


def test_a_description_that_finds_no_room_leaves_the_upload_that_it_would_have_replaced(library: Library) -> None:
    id = library.describe("ann", described(CONTENT)).id
    with Upload(library, id, 0) as upload:
        upload.write(CONTENT[:100])
    with pytest.raises(LibraryFull):
        library.describe("ann", replace(described(CONTENT), size_bytes=BUDGET + 1))
    assert library.received(library.get("ann", id)) == 100


def test_a_disk_that_is_full_when_all_has_arrived_leaves_no_file(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def look(path: Path, type: AssetType) -> Facts:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        return looked_at(path, type)

    library = Library(tmp_path, look, BUDGET)
    try:
        with pytest.raises(LibraryFull, match="disk"):
            bring(library, CONTENT[:2000])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(library) == []
    library.inspect = looked_at
    with Upload(library, library.describe("ann", described(CONTENT[:2000])).id, 0) as upload:
        upload.write(CONTENT[:2000])
        assert upload.finish().state is AssetState.READY
    library.close()


def test_an_asset_whose_file_is_gone_or_cut_is_told_at_the_start_and_gives_way(library: Library) -> None:
    gone, cut, whole = (bring(library, content, content.decode()) for content in (b"gone", b"cut", b"whole"))
    library.shelf("ann").path(gone).unlink()
    library.shelf("ann").path(cut).write_bytes(b"c")
    recover(library)
    for asset in (gone, cut):
        told = library.get("ann", asset.id)
        assert (told.state, told.reason) == (AssetState.ERROR, "its file was lost here; bring it again")
        assert library.shelf("ann").find(asset.id, AssetType.LORA) is None
    assert files(library) == [f"blobs/{whole.sha256[:2]}/{whole.sha256}.safetensors"]
    assert bring(library, b"gone", "gone").state is AssetState.READY


def test_requests_find_assets_while_others_write(library: Library) -> None:
    asset = bring(library, CONTENT)
    shelf = library.shelf("ann")
    with ThreadPoolExecutor(1) as thread, library.store.transaction():
        library.store.remove(asset.id)
        found = thread.submit(shelf.find, "style", AssetType.LORA)
        names = thread.submit(shelf.names, AssetType.LORA)
        assert (found.result(HANG_SECONDS), names.result(HANG_SECONDS)) == (asset, ["style"])
    assert shelf.find("style", AssetType.LORA) is None


def test_requests_find_assets_by_indexes_alone(library: Library) -> None:
    asked: list[str] = []
    library.glance._connection.set_trace_callback(asked.append)
    shelf = library.shelf("ann")
    assert shelf.find("nothing", AssetType.LORA) is None
    assert shelf.names(AssetType.LORA) == []
    library.glance._connection.set_trace_callback(None)
    assert len(asked) == 4
    for sql in asked:
        plan = [row["detail"] for row in library.glance._connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
        assert plan
        assert not [step for step in plan if step.startswith("SCAN") or "assets_by_state" in step], plan


def test_of_very_many_names_the_first_are_told(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glance, "MOST_NAMES", 2)
    for name in ("b", "c", "d"):
        bring(library, b"x", name)
    for name in ("a", "b", "z"):
        bring(library, b"x", name, owner="bob", public=True)
    assert library.shelf("ann").names(AssetType.LORA) == ["a", "b", "c"]


CRASH = """
import os, sys
from pathlib import Path
from assets.conftest import described, looked_at
from server.assets import library as keeping
from server.assets.library import Library
from server.assets.uploads import Upload

def die(path, type):
    os.kill(os.getpid(), 9)

library = Library(Path(sys.argv[1]), die, 10**7)
content = bytes(range(256)) * 40
begun = Upload(library, library.describe("ann", described(content, "begun")).id, 0)
begun.write(content[:500])
looked = Upload(library, library.describe("ann", described(content, "looked")).id, 0)
looked.write(content)
(library.folder / "partial" / "stray").write_bytes(b"x")
os.makedirs(library.folder / "blobs" / "ab")
(library.folder / "blobs" / "ab" / "abc.safetensors").write_bytes(b"x")
looked.finish()
"""


def run(program: str, *arguments: str) -> int:
    """How it ends, in a process of its own."""
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join(str(root / part) for part in ("", "client", "tests"))
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False).returncode


def test_a_killed_service_loses_nothing_and_leaves_no_stray_file(tmp_path: Path) -> None:
    assert run(CRASH, str(tmp_path)) == -9
    library = Library(tmp_path, looked_at, BUDGET)
    assert library.get("ann", "looked").state is AssetState.UPLOADED
    recover(library)
    begun, looked = library.get("ann", "begun"), library.get("ann", "looked")
    assert [library.received(asset) for asset in (begun, looked)] == [500, len(CONTENT)]
    assert (begun.state, looked.state) == (AssetState.UPLOADING, AssetState.UPLOADING)
    assert files(library) == sorted(f"partial/{asset.id}" for asset in (begun, looked))
    for asset, at in ((begun, 500), (looked, len(CONTENT))):
        with Upload(library, asset.id, at) as upload:
            upload.write(CONTENT[at:])
            assert upload.finish().state is AssetState.READY
    recover(library)
    assert len(files(library)) == 1
    library.close()


KILLED_AT = """
import os, sys
from pathlib import Path
from assets.conftest import bring, looked_at
from server.assets.library import Library

library = Library(Path(sys.argv[1]), looked_at, 10**7)
bring(library, b"content")
library.store._connection.set_trace_callback(lambda sql: sql == sys.argv[2] and os.kill(os.getpid(), 9))
library.delete("ann", "style")
if sys.argv[2] == "COMMIT":
    raise AssertionError
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("moment", "there"), [("COMMIT", True), ("never", False)])
def test_a_service_killed_while_it_deletes_has_the_asset_whole_or_not_at_all(
    tmp_path: Path, moment: str, there: bool
) -> None:
    assert run(KILLED_AT, str(tmp_path), moment) == -9
    library = Library(tmp_path, looked_at, BUDGET)
    recover(library)
    found = library.shelf("ann").find("style", AssetType.LORA)
    assert (found is not None) == there
    assert found is None or library.shelf("ann").path(found).read_bytes() == b"content"
    assert len(files(library)) == there
    library.close()


def test_an_asset_is_still_there_after_a_restart(library: Library) -> None:
    asset = bring(library, CONTENT)
    library.close()
    again = Library(library.folder, looked_at, BUDGET)
    recover(again)
    assert again.get("ann", "style") == asset
    assert again.shelf("ann").path(asset).read_bytes() == CONTENT
    again.close()


def test_pages_are_newest_first_and_what_comes_or_goes_meanwhile_moves_nothing(library: Library) -> None:
    for i in range(9):
        library.describe("ann", described(CONTENT, f"a{i}"))
    first = library.page("ann", Wanted(), None, 4)
    assert [row.asset.name for row in first] == ["a8", "a7", "a6", "a5"]
    library.describe("ann", described(CONTENT, "new"))
    library.delete("ann", "a7")
    library.delete("ann", "a3")
    second = library.page("ann", Wanted(), first[-1].number, 4)
    assert [row.asset.name for row in second] == ["a4", "a2", "a1", "a0"]


def test_filters_let_through_what_they_name(library: Library) -> None:
    bring(library, b"sdxl", "neon-xl", public=True)
    bring(library, b"1", "neon", AssetType.VAE)
    bring(library, b"2", "blue")
    library.describe("ann", described(b"3", "later"))

    def names(wanted: Wanted) -> set[str]:
        found = {row.asset.name for row in library.page("ann", wanted, None, 10)}
        assert library.count("ann", wanted) == len(found)
        return found

    assert names(Wanted(types=[AssetType.LORA])) == {"neon-xl", "blue", "later"}
    assert names(Wanted(family="sdxl")) == names(Wanted(engines=["ssd"])) == names(Wanted(public=True)) == {"neon-xl"}
    assert names(Wanted(name_prefix="neon")) == {"neon", "neon-xl"}
    assert names(Wanted(name_prefix="n%")) == names(Wanted(name="' OR 1=1 --")) == set()
    assert names(Wanted(name="blue", owners=["ann", "bob"])) == {"blue"}
    assert names(Wanted(ids=[library.get("ann", "blue").id], engines=["sd15", "ssd"])) == {"blue"}


def test_a_folder_that_is_no_library_is_told(tmp_path: Path) -> None:
    (tmp_path / "assets.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(OSError, match=r"assets.sqlite cannot be opened"):
        Library(tmp_path, looked_at, BUDGET)


def test_a_database_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    Library(tmp_path, looked_at, BUDGET).close()
    connection = sqlite3.connect(tmp_path / "assets.sqlite")
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(OSError, match="another version"):
        Library(tmp_path, looked_at, BUDGET)
