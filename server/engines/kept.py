"""Engines that stay loaded and are ready only once proved: one rule for every way in which an engine can be lost.

An engine that is not ready any more (its Triton was started again, by us or by somebody else), or that failed a call as
unavailable or by a timeout (its process died or hangs), is in doubt: no call reaches it until it has computed its
golden tensors since. Where it cannot, it is loaded again, and again until it can. Knows nothing of why it was lost.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from server.engines import golden
from server.engines.port import Array, EngineFault, Engines, EngineTimeout, EngineUnavailable, Spec, Tensors, Usage

_LOOK_SECONDS = 0.5  # between looks at engines that nothing is known against
_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds after the nth failure in a row

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Kept:
    """An engine and where its golden tensors lie."""

    spec: Spec
    repository: Path
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # loading, proving and unloading exclude each other


class KeptEngines:
    """`Engines` over another home, whose engines nobody else may load or unload."""

    def __init__(self, engines: Engines, repository: Path, specs: Iterable[Spec]) -> None:
        """`repository` holds the golden tensors of these specs. `close` closes the other home too."""
        self._engines = engines
        self._kept = {spec.name: _Kept(spec, repository) for spec in specs}
        self._wanted: set[str] = set()
        self._proved: set[str] = set()
        self._doubt = asyncio.Event()  # there is reason to look at once
        self._watcher: asyncio.Task[None] | None = None

    def add(self, spec: Spec, repository: Path) -> None:
        """See `Engines`."""
        self._kept.setdefault(spec.name, _Kept(spec, repository))
        self._engines.add(spec, repository)

    def forget(self, engine: str) -> None:
        """See `Engines`."""
        self._kept.pop(engine, None)
        self._engines.forget(engine)

    async def load(self, engine: str) -> None:
        """See `Engines`. Raises `GoldenMismatch` for an engine that computes wrongly; it is then not kept."""
        kept = self._kept.get(engine)
        if kept is not None:
            async with kept.lock:
                try:
                    await self._load(engine)
                except BaseException:
                    with suppress(EngineFault):
                        await self._engines.unload(engine)  # what has not proved takes no memory
                    raise
                self._wanted.add(engine)
        else:
            await self._engines.load(engine)  # says what is wrong with the name
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())

    async def unload(self, engine: str) -> None:
        """See `Engines`."""
        self._wanted.discard(engine)
        self._proved.discard(engine)
        kept = self._kept.get(engine)
        if kept is not None:
            async with kept.lock:
                self._proved.discard(engine)  # while this waited it may have been brought back
                await self._engines.unload(engine)
        else:
            await self._engines.unload(engine)  # says what is wrong with the name

    async def run(self, engine: str, inputs: Tensors, timeout: float | None = None) -> dict[str, Array]:
        """See `Engines`. `timeout` is for an engine that hangs, not for a caller in a hurry: it puts it in doubt."""
        if engine in self._wanted - self._proved:
            raise EngineUnavailable(f"{engine} was lost and is being loaded again")
        try:
            return await self._engines.run(engine, inputs, timeout)
        except (EngineUnavailable, EngineTimeout):
            self._proved.discard(engine)
            self._doubt.set()
            raise

    async def ready(self) -> Sequence[str]:
        """See `Engines`. Those that have proved since they were last loaded or in doubt."""
        return tuple(name for name in await self._engines.ready() if name in self._proved)

    async def answers(self) -> bool:
        """See `Engines`."""
        return await self._engines.answers()

    async def usage(self) -> Mapping[str, Usage]:
        """See `Engines`."""
        return await self._engines.usage()

    async def close(self) -> None:
        """See `Engines`."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._engines.close()

    async def _watch(self) -> None:
        """For ever: find what was lost and bring it back."""
        failures = 0
        while True:
            self._doubt.clear()
            proved = frozenset(self._proved)
            ready = await self._engines.ready()
            self._proved.difference_update(proved.difference(ready))
            lost = sorted(self._wanted - self._proved)
            if all(await asyncio.gather(*(self._brought_back(engine) for engine in lost))):
                failures = 0
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._doubt.wait(), _LOOK_SECONDS)
            else:
                await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
                failures += 1

    async def _brought_back(self, engine: str) -> bool:
        """One attempt; whether it succeeded."""
        kept = self._kept.get(engine)
        if kept is None:  # forgotten meanwhile
            return True
        async with kept.lock:
            if engine not in self._wanted or engine in self._proved:
                return True
            try:
                if not await self._proves_as_it_is(engine):
                    await self._load(engine)
            except EngineFault as fault:
                _log.error("engine %s is away: %s", engine, fault)
                return False
            except Exception:  # a bug, and still the only way to serve again is to try again
                _log.exception("engine %s is away", engine)
                return False
            _log.warning("engine %s serves again", engine)
            return True

    async def _proves_as_it_is(self, engine: str) -> bool:
        """Perhaps only the connection was lost. Triton starts no dead process again, and a load alone does nothing
        then, so what cannot prove is unloaded."""
        if engine not in await self._engines.ready():
            return False
        try:
            await self._prove(engine)
        except EngineFault as fault:
            _log.error("engine %s is loaded again: %s", engine, fault)
            await self._engines.unload(engine)
            return False
        return True

    async def _load(self, engine: str) -> None:
        await self._engines.load(engine)
        await self._prove(engine)

    async def _prove(self, engine: str) -> None:
        kept = self._kept[engine]
        await golden.check(self._engines, kept.repository, (kept.spec,))
        self._proved.add(engine)
