"""The library put in order: after a crash, and from time to time. Knows neither callers nor engines."""

import logging
from contextlib import suppress
from datetime import timedelta

from server.assets.asset import Asset, AssetState, blob
from server.assets.library import COMING, Library
from server.assets.partial import is_held

log = logging.getLogger(__name__)

# How long what stands still takes a name, and room that was announced.
PATIENCE = {
    AssetState.READY_TO_UPLOAD: timedelta(hours=1),
    AssetState.UPLOADING: timedelta(days=1),
    AssetState.UPLOADED: timedelta(days=1),
    AssetState.REJECTED: timedelta(days=1),  # its reason is told as long
    AssetState.ERROR: timedelta(days=1),
}


def sweep(library: Library) -> None:
    """Remove uploads that stand still, and what is told of refused and failed ones. May take as long as removing
    files."""
    store = library.store
    for state, patience in PATIENCE.items():
        for found in store.in_state(state, before=library.now() - patience):
            with store.transaction():
                row = store.by_id(found.asset.id)  # again: now nobody else changes it
                if row is not None and row.changed == found.changed and not library.is_uploading(row.asset.id):
                    library.forget(row.asset)


def recover(library: Library) -> None:
    """After a crash: what was being looked at may be sent to its end again, assets without their file are told to have
    failed, and files of nobody go. May take as long as listing all files."""
    store = library.store
    for row in store.in_state(AssetState.UPLOADED):
        if not library.is_uploading(row.asset.id):
            store.change(row.asset.id, AssetState.UPLOADING, library.now())
    for row in store.in_state(AssetState.READY):
        if not _is_whole(library, row.asset):
            _tell_lost(library, row.asset.id)
    for path in (library.folder / "partial").iterdir():
        with store.transaction():
            if not _is_awaited(library, path.name) and not is_held(path):
                path.unlink(missing_ok=True)
    for path in (library.folder / "blobs").glob("*/*"):
        with store.transaction():
            if not store.is_content(path.stem):
                path.unlink(missing_ok=True)
    sweep(library)


def _is_awaited(library: Library, id: str) -> bool:
    row = library.store.by_id(id)
    return row is not None and row.asset.state in COMING


def _is_whole(library: Library, asset: Asset) -> bool:
    with suppress(FileNotFoundError):
        return blob(library.folder, asset.sha256).stat().st_size == asset.size_bytes
    return False


def _tell_lost(library: Library, id: str) -> None:
    with library.store.transaction():
        row = library.store.by_id(id)  # again: now nobody else changes it
        if row is not None and row.asset.state is AssetState.READY and not _is_whole(library, row.asset):
            log.error("the file of asset %s (%s) is lost", id, row.asset.name)
            library.store.change(id, AssetState.ERROR, library.now(), "its file was lost here; bring it again")
