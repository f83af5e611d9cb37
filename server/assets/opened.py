"""The library over a service's life: mended, filled and swept. Knows neither engines nor callers."""

import asyncio
import fcntl
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from server.assets.aside import nothing, to_its_end
from server.assets.deployment import Recognise, bring_in
from server.assets.faults import LibraryFull
from server.assets.fitting import fit_again
from server.assets.library import Inspect, Library
from server.assets.mending import recover, sweep
from server.assets.uploads import Uploads

log = logging.getLogger(__name__)

_SHARED = (
    "another service has the assets in %s open: until it ends, this one's repository brings none in, and what fits "
    "that one's engines is taken to fit this one's; give each a folder of its own by MEDIAGEN_ASSETS"
)
ASK_SECONDS = 5.0  # between looks for whether it has
SWEEP_SECONDS = 3600.0  # between looks for uploads that stand still


@dataclass(frozen=True)
class Looking:
    """How files are looked at, and against what."""

    inspect: Inspect
    recognise: Recognise
    engines: str  # any text that changes when what they are looked at against does


@dataclass(frozen=True)
class Opened:
    """What callers' services need."""

    library: Library
    uploads: Uploads


@asynccontextmanager
async def opened(folder: Path, budget: int, own: Path, looking: Looking) -> AsyncIterator[Opened]:
    """The library in `folder` with the deployment's `own` files in it; what callers brought is looked at again in a
    thread, where the engines are others. Where another service has the folder open, both are done once it has ended.
    Raises `ValueError` for a folder that is of no use."""
    try:
        library = Library(folder, looking.inspect, budget, against=looking.engines)
    except OSError as error:
        raise ValueError(f"MEDIAGEN_ASSETS is {folder}, which is of no use: {error}") from error
    try:
        await _recover(library)
        with (folder / "lock").open("w") as lock:  # the kernel lets go of it, however a process ends
            if _locks(lock):
                await _bring_in(library, own, looking)
            else:
                log.warning(_SHARED, folder)
            uploads, stop = Uploads(library), threading.Event()
            work = [
                asyncio.create_task(_sweep(library)),
                asyncio.create_task(_tend(library, own, looking, lock, stop)),
            ]
            try:
                yield Opened(library, uploads)
            finally:
                stop.set()
                for task in work:
                    task.cancel()
                await asyncio.wait(work)
                await asyncio.to_thread(uploads.close)
    finally:
        library.close()


def _locks(lock: IO[str]) -> bool:
    """Whether nobody else has it; who has it may ask again."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _recover(library: Library) -> None:
    try:
        await to_its_end(partial(recover, library), nothing)
    except LibraryFull as full:  # pictures are drawn all the same, and the next sweep or start may do better
        log.error("the asset library was not put in order: %s", full)


async def _bring_in(library: Library, own: Path, looking: Looking) -> None:
    await to_its_end(partial(bring_in, library, own, looking.recognise, looking.engines), nothing)


async def _tend(library: Library, own: Path, looking: Looking, lock: IO[str], stop: threading.Event) -> None:
    """What is one service's to do."""
    try:
        if not _locks(lock):
            while not _locks(lock):  # noqa: ASYNC110  # it is another process that lets go
                await asyncio.sleep(ASK_SECONDS)
            await _bring_in(library, own, looking)
        await to_its_end(partial(fit_again, library, stop), nothing)
    except Exception:  # assets are as they were
        log.exception("assets do not follow this deployment's engines and files")


async def _sweep(library: Library) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        try:
            await to_its_end(partial(sweep, library), nothing)
        except Exception:  # the next time may do better
            log.exception("the asset library was not swept")
