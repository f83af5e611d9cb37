"""Engines that are loaded at their first use and kept within a memory budget: the least recently used idle one goes.

An engine is in use while an execution of it is under way or waits, and for a second after it: between two steps of a
picture nothing runs, and two requests that compete for room must not unload each other's engine at every step.

Nothing but that is in use: who waits for room has none. So there is nobody to wait for who waits himself, and a request
whose engines have no room beside each other, or beside another request's, is served by one after the other. Whoever
holds an added engine (`held`) keeps it known and its files where they are, not its place in memory.

Knows nothing of pictures, nor of how an engine is lost and comes back (`kept.py`, over which this is laid).
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.engines.memory import estimate, gibibytes
from server.engines.port import (
    Array,
    Condition,
    EngineFault,
    EngineNoRoom,
    Engines,
    EngineUnavailable,
    EngineUnfit,
    Spec,
    State,
    Tensors,
    Usage,
)

_LINGER_SECONDS = 1.0  # after its last execution an engine still counts as in use
_ROOM_SECONDS = 60.0  # that an engine waits for others to become idle
_LOOK_SECONDS = 0.05  # between looks for room
_PAUSES = (1.0, 2.0, 5.0, 15.0, 60.0)  # seconds after the nth failed load in a row, in which it is not tried again
_NEVER_SECONDS = 60.0  # the retry hint where only somebody's hand helps

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Failure:
    """An engine could not be loaded."""

    text: str
    until: float  # by the monotonic clock: not tried again before
    times: int  # in a row
    fits: bool  # otherwise its weights are to blame, and whoever put them together

    def fault(self) -> EngineFault:
        """What callers are told now."""
        return EngineUnavailable(self.text, self.until - time.monotonic()) if self.fits else EngineUnfit(self.text)


class OnDemandEngines:
    """`Engines` over another home, whose engines nobody else may load or unload."""

    def __init__(self, engines: Engines, memory: Mapping[str, int], budget: int) -> None:
        """`memory` is what each engine takes, `budget` what all together may take: bytes. `close` closes the other home
        too.
        """
        self._engines = engines
        self._memory = dict(memory)
        self._added: set[str] = set()  # engines that are forgotten again once they are idle and not loaded
        self._budget = budget
        self._loaded: dict[str, float] = {}  # engine -> its last use; by the monotonic clock
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._spent_on: set[str] = set()  # engines that the budget is spent on: those above, once they have room
        self._uses: Counter[str] = Counter()  # executions under way or waiting
        self._holds: Counter[str] = Counter()  # of who needs an added engine for some while
        self._failures: dict[str, _Failure] = {}
        self._queue = asyncio.Lock()  # of those that wait for others to become idle, oldest first

    def add(self, spec: Spec, repository: Path) -> None:
        """See `Engines`. What it takes is told from its files. It is forgotten by itself whenever it is neither loaded
        nor held: add it within `held`.
        """
        if spec.name not in self._memory:
            self._memory[spec.name] = estimate(repository, spec.name)
            self._added.add(spec.name)
            self._engines.add(spec, repository)

    def forget(self, engine: str) -> None:
        """See `Engines`."""
        if engine in self._added:
            self._added.discard(engine)
            del self._memory[engine]
            self._failures.pop(engine, None)
            self._engines.forget(engine)

    @property
    def needed(self) -> Collection[str]:
        """Added engines whose files must stay: they are held, execute or are being loaded."""
        return frozenset(engine for engine in self._added if self._is_needed(engine))

    @property
    def idle(self) -> Sequence[str]:
        """Added engines whose files must stay as long as they are loaded, and no longer: least recently used first."""
        loaded = self._added & (self._loaded.keys() | self._leaving.keys())
        idle = (engine for engine in loaded if not self._is_needed(engine))
        return sorted(idle, key=lambda engine: self._loaded.get(engine, 0.0))

    def is_loaded(self, engine: str) -> bool:
        """Whether its next use needs no load."""
        return engine in self._loaded

    @contextmanager
    def held(self, engine: str) -> Iterator[None]:
        """Within this an added engine is not forgotten, so its next use loads it again wherever it made room for
        others; it need not be known yet.
        """
        try:
            with _counted(self._holds, engine):
                yield
        finally:
            self._forget_what_is_gone()

    async def make_leave(self, engines: Iterable[str]) -> None:
        """Unload those of them that are idle now, see `idle`; returns when their memory is free and files closed."""
        idle = frozenset(self.idle)
        leaving = [self._leaving.get(engine) or self._let_go(engine) for engine in engines if engine in idle]
        if leaving:
            await asyncio.wait(leaving)

    async def load(self, engine: str) -> None:
        """See `Engines`. Many callers share one load, and one that gives up leaves it to the others and to the next.

        Raises `EngineNoRoom`, `EngineUnavailable` for an engine that cannot be loaded or computes wrongly, or
        `EngineUnfit`.
        """
        if engine not in self._memory:
            await self._engines.load(engine)  # says what is wrong with the name
            return
        if engine in self._loaded:
            self._loaded[engine] = time.monotonic()
            return
        loading = self._loading.get(engine)
        if loading is None:
            loading = self._loading[engine] = asyncio.create_task(self._bring(engine))
            loading.add_done_callback(lambda task: self._brought(engine, task))
        await asyncio.shield(loading)

    async def unload(self, engine: str) -> None:
        """See `Engines`. In use or not."""
        if engine not in self._memory:
            await self._engines.unload(engine)  # says what is wrong with the name
        elif engine in self._loaded:
            await asyncio.shield(self._let_go(engine))

    async def run(self, engine: str, inputs: Tensors, timeout: float | None = None) -> dict[str, Array]:
        """See `Engines`. `timeout` begins when the engine is loaded."""
        try:
            with _counted(self._uses, engine):
                await self.load(engine)
                return await self._engines.run(engine, inputs, timeout)
        finally:
            if engine in self._loaded:
                self._loaded[engine] = time.monotonic()
            self._forget_what_is_gone()

    async def ready(self) -> Sequence[str]:
        """See `Engines`."""
        return await self._engines.ready()

    async def answers(self) -> bool:
        """See `Engines`."""
        return await self._engines.answers()

    async def usage(self) -> Mapping[str, Usage]:
        """See `Engines`."""
        return await self._engines.usage()

    async def healthy(self) -> bool:
        """Whether the home is there and nothing that was loaded is lost. What was added matters to those who asked for
        it alone: it keeps nobody else from this service."""
        loaded = self._loaded.keys() - self._added
        answers, ready = await self._engines.answers(), frozenset(await self._engines.ready())
        return answers and ready.issuperset(loaded & self._loaded.keys())  # what was let go meanwhile is not lost

    async def conditions(self) -> Mapping[str, Condition]:
        """Of every engine."""
        ready = frozenset(await self._engines.ready())
        return {
            engine: Condition(self._state(engine, ready), memory, memory if engine in self._spent_on else 0)
            for engine, memory in self._memory.items()
        }

    async def close(self) -> None:
        """See `Engines`."""
        tasks = (*self._loading.values(), *self._leaving.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._engines.close()

    def _state(self, engine: str, ready: frozenset[str]) -> State:
        if engine in self._loaded:
            return State.READY if engine in ready else State.LOST
        if engine in self._loading:
            return State.LOADING
        return State.LOST if engine in self._failures else State.UNLOADED

    async def _bring(self, engine: str) -> None:
        """Room first, then the engine."""
        failure = self._failures.get(engine)
        if failure is not None and time.monotonic() < failure.until:
            raise failure.fault()
        if engine in self._leaving:
            await asyncio.wait((self._leaving[engine],))
        begun = time.monotonic()
        await self._find_room(engine)
        has_room = time.monotonic()
        try:
            await self._engines.load(engine)
        except EngineFault as fault:
            self._spent_on.discard(engine)
            raise await self._failed(engine, fault) from fault
        except BaseException:
            self._spent_on.discard(engine)
            raise
        self._failures.pop(engine, None)
        self._loaded[engine] = loaded = time.monotonic()
        _log.info(
            "engine %s is loaded after %.1f s, and %.1f s of waiting for room; %s of %s are taken",
            *(engine, loaded - has_room, has_room - begun, gibibytes(self._spent()), gibibytes(self._budget)),
        )

    def _brought(self, engine: str, task: asyncio.Task[None]) -> None:
        del self._loading[engine]
        if not task.cancelled():
            task.exception()  # perhaps nobody waits any more who would look

    async def _failed(self, engine: str, fault: EngineFault) -> EngineFault:
        """What callers are told. An engine that cannot be loaded is not tried again at every call."""
        if not await self._engines.answers():  # it is not the engine's fault
            return EngineUnavailable(str(fault))
        last = self._failures.get(engine)
        times = 1 if last is None else last.times + 1
        pause = _PAUSES[min(times, len(_PAUSES)) - 1]
        text = f"{engine} cannot be loaded: {fault}"
        failure = _Failure(text, time.monotonic() + pause, times, fits=not isinstance(fault, EngineUnfit))
        self._failures[engine] = failure
        _log.error("%s; not tried again within %.0f s", text, pause)
        return failure.fault()

    async def _find_room(self, engine: str) -> None:
        """Returns when the budget is spent on the engine and the memory is free. Raises `EngineNoRoom`."""
        memory = self._memory[engine]
        if memory > self._budget:
            raise EngineNoRoom(
                f"{engine} needs {gibibytes(memory)} of memory and all engines together may take "
                f"{gibibytes(self._budget)}: set MEDIAGEN_ENGINE_MEMORY to more",
                _NEVER_SECONDS,
            )
        if self._spent() + memory <= self._budget:
            self._spent_on.add(engine)
            return
        try:
            async with asyncio.timeout(_ROOM_SECONDS) as limit, self._queue:
                while (leaving := self._who_leaves(memory)) is None:  # noqa: ASYNC110  (time passing is no event)
                    await asyncio.sleep(_LOOK_SECONDS)
                limit.reschedule(None)
                _log.info("unloading %s: %s needs the room", ", ".join(leaving) or "nothing", engine)
                self._spent_on.add(engine)  # before the others are gone: nobody else gets their room
                await asyncio.gather(*(self._let_go(other) for other in leaving))
        except TimeoutError as error:
            free = gibibytes(max(0, self._budget - self._spent()))
            raise EngineNoRoom(
                f"{engine} needs {gibibytes(memory)} of memory, {free} are free, "
                f"and the engines in use did not become idle within {_ROOM_SECONDS:.0f} s",
                _LINGER_SECONDS,
            ) from error

    def _who_leaves(self, memory: int) -> Sequence[str] | None:
        """The idle engines that must go for this much room, least recently used first; None where it is not enough."""
        missing = self._spent() + memory - self._budget
        leaving: list[str] = []
        before = time.monotonic() - _LINGER_SECONDS
        for engine, last_use in sorted(self._loaded.items(), key=lambda item: item[1]):
            if missing <= 0:
                break
            if not self._uses[engine] and last_use <= before:
                leaving.append(engine)
                missing -= self._memory[engine]
        return leaving if missing <= 0 else None

    def _let_go(self, engine: str) -> "asyncio.Task[None]":
        """At once the engine is not loaded any more; the task ends when its memory is free."""
        del self._loaded[engine]
        task = self._leaving[engine] = asyncio.create_task(self._unload(engine))
        return task

    async def _unload(self, engine: str) -> None:
        try:
            await self._engines.unload(engine)
        except EngineUnavailable as fault:  # a Triton that is not there holds no memory
            _log.warning("engine %s could not be unloaded: %s", engine, fault)
        finally:
            del self._leaving[engine]
            self._spent_on.discard(engine)
            self._forget_what_is_gone()

    def _forget_what_is_gone(self) -> None:
        """Added engines that are nowhere any more, and none whose failure still keeps from trying again."""
        now = time.monotonic()
        for engine in tuple(self._added - self._loaded.keys() - self._leaving.keys()):
            failure = self._failures.get(engine)
            if not self._is_needed(engine) and (failure is None or failure.until <= now):
                self.forget(engine)

    def _is_needed(self, engine: str) -> bool:
        return bool(self._holds[engine] or self._uses[engine] or engine in self._loading)

    def _spent(self) -> int:
        return sum(self._memory[engine] for engine in self._spent_on)


@contextmanager
def _counted(counter: Counter[str], engine: str) -> Iterator[None]:
    counter[engine] += 1
    try:
        yield
    finally:
        counter[engine] -= 1
        if counter[engine] == 0:
            del counter[engine]
