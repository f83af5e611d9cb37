"""The library: what is kept, from its description to its end. Knows neither gRPC nor HTTP nor how files are looked at.

Files are named by what they contain, or while they arrive by the asset's id: no word of a caller's is ever part of a
path. A file gets its content's name before a row says that it is there, and goes after the row has: whatever ends the
process in between, a file may be too much, which the next start removes, and none is missing. An upload goes on where
its file ends.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from server.assets.asset import NO_FACTS, Asset, AssetState, AssetType, Facts, blob
from server.assets.faults import LibraryFull, NameTaken, NoSuchAsset, NotOwner, UploadRunning, size_of
from server.assets.glance import Glance
from server.assets.partial import is_held
from server.assets.rows import Row
from server.assets.rules import Described
from server.assets.store import Store, Wanted

PAGE, MAX_PAGE = 100, 1000  # assets: where nobody says how many, and at most
MAX_ASSETS = 10_000  # of one tenant, so that rows are bounded as bytes are

Inspect = Callable[[Path, AssetType], Facts]  # raises `BadAsset`
COMING = (AssetState.READY_TO_UPLOAD, AssetState.UPLOADING, AssetState.UPLOADED)  # whose bytes may still be sent


@dataclass(frozen=True)
class Shelf:
    """What one tenant's requests may use. Its methods take microseconds, whatever is written meanwhile."""

    _library: "Library"
    _tenant: str

    def find(self, name_or_id: str, type: AssetType) -> Asset | None:
        """Ready, and of this type; by name the tenant's own before the deployment's before other tenants'."""
        row = self._library.glance.usable(self._tenant, name_or_id, type)
        return None if row is None else row.asset

    def names(self, type: AssetType) -> list[str]:
        """Of all that could be found, in order; of very many the first."""
        return self._library.glance.names(self._tenant, type)

    def path(self, asset: Asset) -> Path:
        """Its file: safetensors, and looked at."""
        return blob(self._library.folder, asset.sha256)


class Library:
    """A folder with a database and files. Methods are for any thread; those that may take longer say so."""

    def __init__(
        self,
        folder: Path,
        inspect: Inspect,
        budget: int,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        against: str = "",
    ) -> None:
        """`budget` in bytes, for what callers bring; `against` what files are looked at against, in any text that
        changes when that does. Raises `OSError` for a folder that cannot be used."""
        for part in (folder, folder / "blobs", folder / "partial"):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.inspect = inspect
        self.against = against
        self.store = Store(folder / "assets.sqlite")
        self.glance = Glance(folder / "assets.sqlite")
        self.now = now
        self._budget = budget

    def close(self) -> None:
        """Whatever is under way must have ended."""
        self.glance.close()
        self.store.close()

    def shelf(self, tenant: str) -> Shelf:
        """For reading requests."""
        return Shelf(self, tenant)

    def get(self, tenant: str, asked: str) -> Asset:
        """By id or name. Raises `NoSuchAsset`."""
        row = self.store.visible(tenant, asked)
        if row is None:
            raise NoSuchAsset(asked)
        return row.asset

    def received(self, asset: Asset) -> int:
        """Bytes of it that are here."""
        if asset.state is AssetState.READY:
            return asset.size_bytes
        with suppress(FileNotFoundError):
            return self.partial(asset.id).stat().st_size
        return 0

    def page(self, tenant: str, wanted: Wanted, below: int | None, size: int, skip: int = 0) -> Sequence[Row]:
        """Newest first, those whose number is below the given one: what comes and goes meanwhile moves nothing."""
        return self.store.page(tenant, wanted, below, size, skip)

    def count(self, tenant: str, wanted: Wanted) -> int:
        """Of all pages together."""
        return self.store.count(tenant, wanted)

    def describe(self, owner: str, described: Described) -> Asset:
        """A place for its bytes: a new one, or that of an upload of the same that has not ended.

        What was refused, failed or stands still under that name gives way. Raises `NameTaken`, `UploadRunning`,
        `LibraryFull`.
        """
        with self.store.transaction():
            held = self.store.by_name(owner, described.name)
            if held is not None:
                if _goes_on(held, described):
                    return held.asset
                self._give_way(held)
            if self.store.count_owned(owner) >= MAX_ASSETS:
                raise LibraryFull(f"you have {MAX_ASSETS:,} assets, as many as one may have; delete some")
            self.refuse_too_much(described.size_bytes or 0)
            asset = Asset(
                id=uuid.uuid4().hex,
                name=described.name,
                type=described.type,
                owner=owner,
                public=described.public,
                state=AssetState.READY_TO_UPLOAD,
                reason="",
                size_bytes=described.size_bytes or 0,
                sha256=described.sha256 or "",
                description=described.description,
                create_time=self.now(),
                facts=NO_FACTS,
            )
            self.store.add(asset, described.size_bytes, described.sha256, described.preprocessor)
        return asset

    def delete(self, tenant: str, asked: str) -> Asset:
        """A running upload of it ends as one of nothing. Raises `NoSuchAsset`, `NotOwner`."""
        with self.store.transaction():
            asset = self.get(tenant, asked)
            if asset.owner != tenant:
                raise NotOwner(f"{asset.name} is not yours: only its owner may delete it")
            self.forget(asset)
        return replace(asset, state=AssetState.DELETED)

    def keep(self, id: str, sha256: str, facts: Facts, source: str) -> Asset:
        """What has arrived becomes the asset's content, unless equal bytes are here. Raises `NoSuchAsset`,
        `LibraryFull`: then it lies where it arrived."""
        path, target = self.partial(id), blob(self.folder, sha256)
        moved = False
        try:
            with self.store.transaction():
                if self.store.by_id(id) is None or not path.exists():
                    raise NoSuchAsset(id)
                size = path.stat().st_size
                if target.exists():
                    self.store.afterwards(lambda: path.unlink(missing_ok=True))
                else:
                    _move(path, target)
                    moved = True
                self.store.set_content(id, size, sha256)
                self.store.set_facts(id, facts, source)
                self.store.change(id, AssetState.READY, self.now())
                kept = self.store.by_id(id)
        except BaseException:
            if moved:
                self._take_back(target, path)
            raise
        assert kept is not None
        return kept.asset

    def give_up(self, id: str, state: AssetState, reason: str) -> None:
        """Its bytes go, its row says why."""
        with self.store.transaction():
            self.partial(id).unlink(missing_ok=True)
            self.store.change(id, state, self.now(), reason)

    def forget(self, asset: Asset) -> None:
        """Whosever it is."""
        with self.store.transaction():
            self.store.remove(asset.id)
            self.store.afterwards(lambda: self._clear(asset))

    def refuse_too_much(self, size_bytes: int) -> None:
        """Raises `LibraryFull`."""
        left = self._budget - self.store.taken()
        if size_bytes > left:
            raise LibraryFull(
                f"{size_of(size_bytes)} are more than the {size_of(max(left, 0))} that are left of "
                f"{size_of(self._budget)} for assets; delete some, or ask who runs this service for more"
            )
        free = shutil.disk_usage(self.folder).free
        if size_bytes > free:
            raise LibraryFull(
                f"{size_of(size_bytes)} are more than the {size_of(free)} that are free on the disk of the assets; "
                "delete some, or ask who runs this service for more"
            )

    def partial(self, id: str) -> Path:
        """Where an asset's bytes are while they arrive."""
        return self.folder / "partial" / id

    def is_uploading(self, id: str) -> bool:
        """Whether somebody sends or looks at its bytes, in any process."""
        return is_held(self.partial(id))

    def _clear(self, asset: Asset) -> None:
        """The files of one that is gone."""
        self.partial(asset.id).unlink(missing_ok=True)
        if asset.state is AssetState.READY and not self.store.is_content(asset.sha256):
            blob(self.folder, asset.sha256).unlink(missing_ok=True)

    def _take_back(self, target: Path, path: Path) -> None:
        """Unless somebody has brought the same meanwhile."""
        with self.store.transaction():
            if not self.store.is_content(target.stem):
                target.rename(path)

    def _give_way(self, held: Row) -> None:
        """Raises `NameTaken`, `UploadRunning`."""
        asset = held.asset
        if asset.state is AssetState.READY:
            raise NameTaken(f"you have an asset named {asset.name}; delete it first, or choose another name")
        if self.is_uploading(asset.id):
            raise UploadRunning(f"{asset.name} is being uploaded, and its description was another; retry later")
        self.forget(asset)


def _goes_on(held: Row, described: Described) -> bool:
    """Whether it is an upload of the very same."""
    asset = held.asset
    said = Described(
        name=asset.name,
        type=asset.type,
        size_bytes=held.declared_bytes,
        sha256=held.declared_sha256,
        public=asset.public,
        description=asset.description,
        preprocessor=held.preprocessor,
    )
    return said == described and asset.state in COMING


def _move(path: Path, target: Path) -> None:
    """To a name that outlives a power cut, as its content has to already."""
    if not target.parent.exists():
        target.parent.mkdir(mode=0o700, exist_ok=True)
        _settle(target.parent.parent)
    path.rename(target)
    _settle(target.parent)


def _settle(folder: Path) -> None:
    """A new name in it outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
