"""The library over a service's life: mended, filled and swept. Knows neither engines nor callers."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from server.assets.deployment import Recognise, bring_in
from server.assets.fitting import fit_again
from server.assets.library import Inspect, Library
from server.assets.mending import recover, sweep
from server.assets.uploads import Uploads

log = logging.getLogger(__name__)

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
    thread, where the engines are others. Raises `OSError` for a folder that is of no use, `LibraryFull`."""
    library = Library(folder, looking.inspect, budget, against=looking.engines)
    try:
        await asyncio.to_thread(recover, library)
        await asyncio.to_thread(bring_in, library, own, looking.recognise, looking.engines)
        uploads = Uploads(library)
        stop = threading.Event()
        fitting = asyncio.create_task(_fit_again(library, stop))
        sweeping = asyncio.create_task(_sweep(library))
        try:
            yield Opened(library, uploads)
        finally:
            stop.set()
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping
            await fitting
            await asyncio.to_thread(uploads.close)
    finally:
        library.close()


async def _fit_again(library: Library, stop: threading.Event) -> None:
    try:
        await asyncio.to_thread(fit_again, library, stop)
    except Exception:  # assets are as they were
        log.exception("assets were not looked at again")


async def _sweep(library: Library) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        try:
            await asyncio.to_thread(sweep, library)
        except Exception:  # the next time may do better
            log.exception("the asset library was not swept")
