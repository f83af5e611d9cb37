"""The library: what is kept, from its description to its end. Knows neither gRPC nor HTTP nor how files are looked at.

Files are named by what they contain, or while they arrive by the asset's id: no word of a caller's is ever part of a
path. A file gets its content's name, and loses it, within the transaction that says so. After a crash nothing is lost
but what was under way, and an upload goes on where its file ends.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from server.assets.asset import NO_FACTS, Asset, AssetState, AssetType, Facts, blob
from server.assets.faults import LibraryFull, NameTaken, NoSuchAsset, NotOwner, UploadRunning, size_of
from server.assets.partial import is_held
from server.assets.rules import Described
from server.assets.store import Row, Store, Wanted

PARTIAL_TIME = timedelta(days=1)  # that an upload may stand still, and that a failed one is told of
MAX_ASSETS = 10_000  # of one tenant, so that rows are bounded as bytes are

Inspect = Callable[[Path, AssetType], Facts]  # raises `BadAsset`
COMING = (AssetState.READY_TO_UPLOAD, AssetState.UPLOADING, AssetState.UPLOADED)  # whose bytes may still be sent


@dataclass(frozen=True)
class Shelf:
    """What one tenant's requests may use. Its methods take microseconds."""

    _library: "Library"
    _tenant: str

    def find(self, name_or_id: str, type: AssetType) -> Asset | None:
        """Ready, and of this type; by name the tenant's own before the deployment's before other tenants'."""
        row = self._library.store.usable(self._tenant, name_or_id, type)
        return None if row is None else row.asset

    def names(self, type: AssetType) -> list[str]:
        """Of all that could be found, in order."""
        return self._library.store.names(self._tenant, type)

    def path(self, asset: Asset) -> Path:
        """Its file: safetensors, and looked at."""
        return blob(self._library.folder, asset.sha256)


class Library:
    """A folder with a database and files. Methods are for any thread; those that may take longer say so."""

    def __init__(
        self, folder: Path, inspect: Inspect, budget: int, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """`budget` in bytes, for what callers bring. Raises `OSError` for a folder that cannot be used."""
        for part in (folder, folder / "blobs", folder / "partial"):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.inspect = inspect
        self.store = Store(folder / "assets.sqlite")
        self.now = now
        self._budget = budget

    def close(self) -> None:
        """Whatever is under way must have ended."""
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

    def sweep(self) -> None:
        """Remove uploads that stand still, and what is told of failed ones. May take as long as removing files."""
        for row in self.store.in_state(*COMING, AssetState.ERROR, before=self.now() - PARTIAL_TIME):
            with self.store.transaction():
                if not self.is_uploading(row.asset.id):
                    self.forget(row.asset)

    def recover(self) -> None:
        """After a crash: what was being looked at may be sent to its end again, and files of nobody go. May take as
        long as listing all files."""
        for row in self.store.in_state(AssetState.UPLOADED):
            if not self.is_uploading(row.asset.id):
                self.store.change(row.asset.id, AssetState.UPLOADING, self.now())
        for path in (self.folder / "partial").iterdir():
            with self.store.transaction():
                if self.store.by_id(path.name) is None and not is_held(path):
                    path.unlink(missing_ok=True)
        for path in (self.folder / "blobs").glob("*/*"):
            with self.store.transaction():
                if not self.store.is_content(path.stem):
                    path.unlink(missing_ok=True)
        self.sweep()

    def keep(self, id: str, sha256: str, facts: Facts) -> Asset:
        """What has arrived becomes the asset's content, unless equal bytes are here. Raises `NoSuchAsset`."""
        path, target = self.partial(id), blob(self.folder, sha256)
        with self.store.transaction():
            if self.store.by_id(id) is None or not path.exists():
                raise NoSuchAsset(id)
            size = path.stat().st_size
            if target.exists():
                path.unlink()
            else:
                target.parent.mkdir(mode=0o700, exist_ok=True)
                path.rename(target)
                _settle(target.parent)
            self.store.set_content(id, size, sha256, facts)
            self.store.change(id, AssetState.READY, self.now())
            kept = self.store.by_id(id)
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
            self.partial(asset.id).unlink(missing_ok=True)
            if asset.state is AssetState.READY and not self.store.is_content(asset.sha256):
                blob(self.folder, asset.sha256).unlink(missing_ok=True)

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
        path = self.partial(id)
        return path.exists() and is_held(path)

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
    said = (asset.type, held.declared_bytes, held.declared_sha256, asset.public, asset.description)
    same = said == (
        *(described.type, described.size_bytes, described.sha256),
        *(described.public, described.description),
    )
    return same and asset.state in COMING


def _settle(folder: Path) -> None:
    """A new name in it outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
