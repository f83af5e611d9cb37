"""The library's states as a machine: whatever two tenants do in whatever order, it says what a small model says, and
exactly the files are there that its rows need."""

import hashlib
import tempfile
from pathlib import Path

from assets.conftest import BUDGET, Clock, files, looked_at
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from server.assets.asset import AssetState, AssetType
from server.assets.faults import (
    BadUpload,
    Incomplete,
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
from server.assets.rules import Described
from server.assets.store import Wanted
from server.assets.uploads import Upload

FOLDER = "/dev/shm" if Path("/dev/shm").is_dir() else None  # where nothing waits for a disk
CONTENTS = (b"first", b"second one", b"bad", b"bug")
TENANTS = st.sampled_from(["ann", "bob"])
NAMES = st.sampled_from(["x", "y"])
COMING = (AssetState.READY_TO_UPLOAD, AssetState.UPLOADING)


class Machine(RuleBasedStateMachine):
    """Beside the library: what each (owner, name) must be, and the bytes that must be here of it."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=FOLDER)
        self.clock = Clock()
        self.library = Library(Path(self.folder.name), looked_at, BUDGET, self.clock)
        self.model: dict[tuple[str, str], tuple[str, AssetState, bytes, bytes, bool]] = {}

    def teardown(self) -> None:
        self.library.close()
        self.folder.cleanup()

    def key(self, id: str) -> tuple[str, str] | None:
        return next((key for key, value in self.model.items() if value[0] == id), None)

    def put(self, key: tuple[str, str], state: AssetState, here: bytes) -> None:
        id, _, whole, _, public = self.model[key]
        self.model[key] = (id, state, whole, here, public)

    @rule(target=ids, owner=TENANTS, name=NAMES, content=st.sampled_from(CONTENTS), public=st.booleans())
    def describe(self, owner: str, name: str, content: bytes, public: bool) -> str:
        held = self.model.get((owner, name))
        said = Described(name, AssetType.LORA, len(content), hashlib.sha256(content).hexdigest(), public, "", "")
        try:
            id = self.library.describe(owner, said).id
        except NameTaken:
            assert held is not None
            assert held[1] is AssetState.READY
            return held[0]
        if held is not None and held[1] in COMING and (held[2], held[4]) == (content, public):
            assert id == held[0]
        else:
            assert held is None or held[1] is not AssetState.READY
            self.model[owner, name] = (id, AssetState.READY_TO_UPLOAD, content, b"", public)
        return id

    @rule(id=ids, offset=st.integers(0, 12), count=st.integers(0, 12), wrong=st.booleans(), finish=st.booleans())
    def send(self, id: str, offset: int, count: int, wrong: bool, finish: bool) -> None:
        key = self.key(id)
        state, whole, here = self.model[key][1:4] if key is not None else (None, b"", b"")
        piece = (b"!" * count) if wrong else whole[offset : offset + count]
        sent = here[:offset] + piece
        try:
            with Upload(self.library, id, offset) as upload:
                upload.write(piece)
                if key is not None:
                    self.put(key, AssetState.UPLOADING, sent)
                if finish:
                    upload.finish()
        except NoSuchAsset:
            assert key is None
        except NotUploading:
            assert state not in COMING
        except WrongOffset:
            assert offset > len(here)
        except Incomplete:
            assert len(sent) < len(whole)
        except BadUpload:
            assert key is not None
            assert len(sent) > len(whole) or sent != whole
            self.put(key, AssetState.ERROR, b"")
        except Rejected:
            assert key is not None
            assert sent == whole == b"bad"
            self.put(key, AssetState.REJECTED, b"")
        except KeyError:
            assert key is not None
            assert sent == whole == b"bug"
            self.put(key, AssetState.ERROR, b"")
        else:
            assert key is not None
            if finish:
                assert sent == whole
                self.put(key, AssetState.READY, whole)

    @rule(id=ids)
    def one_at_a_time(self, id: str) -> None:
        key = self.key(id)
        if key is not None and self.model[key][1] in COMING:
            with Upload(self.library, id, None):
                self.put(key, AssetState.UPLOADING, self.model[key][3])
                try:
                    Upload(self.library, id, None)
                except UploadRunning:
                    return
            raise AssertionError("two at a time")

    @rule(id=consumes(ids), tenant=TENANTS)
    def delete(self, id: str, tenant: str) -> None:
        key = self.key(id)
        try:
            self.library.delete(tenant, id)
        except NotOwner:
            assert key is not None
            assert key[0] != tenant
            assert (self.model[key][1], self.model[key][4]) == (AssetState.READY, True)
        except NoSuchAsset:
            assert key is None or (
                key[0] != tenant and not (self.model[key][1] is AssetState.READY and self.model[key][4])
            )
        else:
            assert key is not None
            assert key[0] == tenant
            del self.model[key]

    @rule()
    def restart(self) -> None:
        self.library.close()
        self.library = Library(Path(self.folder.name), looked_at, BUDGET, self.clock)
        recover(self.library)

    @rule()
    def a_day_later(self) -> None:
        self.clock.turn(days=1, seconds=1)
        sweep(self.library)
        self.model = {key: value for key, value in self.model.items() if value[1] is AssetState.READY}

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        for tenant in ("ann", "bob"):
            rows = {
                (row.asset.owner, row.asset.name): row.asset for row in self.library.page(tenant, Wanted(), None, 99)
            }
            visible = {
                key: value
                for key, value in self.model.items()
                if key[0] == tenant or (value[4] and value[1] is AssetState.READY)
            }
            assert rows.keys() == visible.keys()
            for key, (id, state, whole, here, _) in visible.items():
                assert (rows[key].id, rows[key].state, self.library.received(rows[key])) == (id, state, len(here))
                if state is AssetState.READY:
                    assert self.library.shelf(tenant).path(rows[key]).read_bytes() == whole

    @invariant()
    def no_file_is_there_that_nobody_needs(self) -> None:
        ready = {hashlib.sha256(value[2]).hexdigest() for value in self.model.values() if value[1] is AssetState.READY}
        begun = {value[0] for value in self.model.values() if value[1] in COMING}  # if only an empty file
        names = {Path(file).name.removesuffix(".safetensors") for file in files(self.library)}
        assert ready <= names
        assert names <= ready | begun


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=15, stateful_step_count=25, deadline=None, derandomize=True)
