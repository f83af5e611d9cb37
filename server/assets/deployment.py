"""What lies in the model repository's folder of assets, brought into the library at every start, for every tenant."""

import logging
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from server.assets.asset import DEPLOYMENT, Asset, AssetState, AssetType, BadAsset, Facts, blob
from server.assets.library import Library
from server.assets.partial import sha256_of
from server.assets.rules import is_name, preprocessor_of

log = logging.getLogger(__name__)

Recognise = Callable[[Path], AssetType]  # raises `BadAsset`


def bring_in(library: Library, folder: Path, recognise: Recognise, engines: str) -> None:
    """Every `<name>.safetensors` of the folder becomes a public asset; those whose file is gone go.

    A file is read only when its size or time has changed, or `engines` has: any text that tells what assets are looked
    at against. What is no asset is logged. May take as long as reading all of them. Raises `OSError`, `LibraryFull`.
    """
    found = set()
    for path in sorted(folder.glob("*.safetensors")):
        if not is_name(path.stem):
            log.warning("%s is left out: its name is none that an asset may have", path)
            continue
        try:
            _bring(library, path, recognise, engines)
        except BadAsset as bad:
            log.warning("%s is left out: %s", path, bad)
        else:
            found.add(path.stem)
    for row in library.store.owned(DEPLOYMENT):
        if row.asset.name not in found:
            library.forget(row.asset)


def _bring(library: Library, path: Path, recognise: Recognise, engines: str) -> None:
    status = path.stat()
    source = f"{status.st_size} {status.st_mtime_ns} {engines}"
    held = library.store.by_name(DEPLOYMENT, path.stem)
    ready = (
        held is not None and held.asset.state is AssetState.READY and blob(library.folder, held.asset.sha256).exists()
    )
    if held is not None and ready and held.source == source:
        return
    sha256, type = sha256_of(path), recognise(path)
    facts = library.inspect(path, type)
    facts = replace(facts, preprocessor=preprocessor_of("", facts.preprocessor, path.stem, type))
    if held is not None and ready and (held.asset.sha256, held.asset.type) == (sha256, type):
        with library.store.transaction():
            library.store.set_content(held.asset.id, status.st_size, sha256, facts)
            library.store.set_source(held.asset.id, source)
        return
    _put(library, path, type, sha256, facts, source)


def _put(library: Library, path: Path, type: AssetType, sha256: str, facts: Facts, source: str) -> None:
    asset = Asset(
        id=uuid.uuid4().hex,
        name=path.stem,
        type=type,
        owner=DEPLOYMENT,
        public=True,
        state=AssetState.UPLOADED,
        reason="",
        size_bytes=path.stat().st_size,
        sha256=sha256,
        description="of this deployment",
        create_time=library.now(),
        facts=facts,
    )
    with library.store.transaction():
        held = library.store.by_name(DEPLOYMENT, path.stem)
        if held is not None:
            library.forget(held.asset)
        library.store.add(asset, asset.size_bytes, sha256, "", source)
    try:
        with suppress(OSError):  # another file system, or one without hard links
            os.link(path, library.partial(asset.id))
        if not library.partial(asset.id).exists():
            shutil.copyfile(path, library.partial(asset.id))
        library.keep(asset.id, sha256, facts)
    except BaseException:
        library.forget(asset)
        raise
