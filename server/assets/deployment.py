"""What lies in the model repository's folder of assets, brought into the library at every start, for every tenant."""

import logging
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from server.assets.asset import DEPLOYMENT, NO_FACTS, Asset, AssetState, AssetType, BadAsset, Facts, blob
from server.assets.faults import LibraryFull
from server.assets.library import Library
from server.assets.partial import Partial, sha256_of
from server.assets.rules import is_name, preprocessor_of

log = logging.getLogger(__name__)

_PIECE = 2**20  # bytes copied at once

Recognise = Callable[[Path], AssetType]  # raises `BadAsset`


def bring_in(library: Library, folder: Path, recognise: Recognise, engines: str) -> None:
    """Every `<name>.safetensors` of the folder becomes a public asset; those whose file is gone go.

    A file is read only when its size or time has changed, or `engines` has: any text that tells what assets are looked
    at against. What is no asset, or finds no room, is logged. May take as long as copying all of them. Raises
    `OSError`.
    """
    found = set()
    for path in sorted(folder.glob("*.safetensors")):
        if not is_name(path.stem):
            log.warning("%s is left out: its name is none that an asset may have", path)
            continue
        try:
            _bring(library, path, recognise, engines)
        except (BadAsset, LibraryFull) as why:
            log.warning("%s is left out: %s", path, why)
        else:
            found.add(path.stem)
    for row in library.store.owned(DEPLOYMENT):
        if row.asset.name not in found:
            library.forget(row.asset)


def _bring(library: Library, path: Path, recognise: Recognise, engines: str) -> None:
    status = path.stat()
    source = f"{status.st_size} {status.st_mtime_ns} {engines}"
    held = library.store.by_name(DEPLOYMENT, path.stem)
    ready = held is not None and held.asset.state is AssetState.READY
    if held is not None and ready and held.source == source:
        return
    type = recognise(path)
    if held is not None and ready and (held.asset.sha256, held.asset.type) == (sha256_of(path), type):
        facts = _facts(library, blob(library.folder, held.asset.sha256), path.stem, type)
        library.store.set_facts(held.asset.id, facts, source)
        return
    _put(library, path, type, source)


def _facts(library: Library, file: Path, name: str, type: AssetType) -> Facts:
    facts = library.inspect(file, type)
    return replace(facts, preprocessor=preprocessor_of("", facts.preprocessor, name, type))


def _put(library: Library, path: Path, type: AssetType, source: str) -> None:
    """The library gets a copy, and what it says is of the copy: who writes over the file changes no asset."""
    asset = Asset(
        id=uuid.uuid4().hex,
        name=path.stem,
        type=type,
        owner=DEPLOYMENT,
        public=True,
        state=AssetState.UPLOADED,
        reason="",
        size_bytes=path.stat().st_size,
        sha256="",
        description="of this deployment",
        create_time=library.now(),
        facts=NO_FACTS,
    )
    with library.store.transaction():
        held = library.store.by_name(DEPLOYMENT, path.stem)
        if held is not None:
            library.forget(held.asset)
        library.store.add(asset, asset.size_bytes, None, "")
    try:
        copy = Partial(library.partial(asset.id))
        try:
            with path.open("rb", buffering=0) as file:
                while piece := file.read(_PIECE):
                    copy.write(piece)
            copy.settle()
            facts = _facts(library, copy.path, path.stem, type)
            library.keep(asset.id, sha256_of(copy.path), facts, source)
        finally:
            copy.close()
    except BaseException:
        library.forget(asset)
        raise
