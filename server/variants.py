"""Variants at run time: whoever needs some holds them, and while they are held they are on disk and known.

The first who asks has a variant built and loaded; others who ask meanwhile wait for the same. When the last of them
gives up before it is on disk, it is not loaded, and not built unless that has begun. Only so many are made at once.

In memory it has the place of any engine: it makes room when it is idle, held or not, and its next use loads it again.
So nobody waits for room who keeps others from it, and a request may need more than has room at once. On disk it stays
while it is held; who finds no room there is told at once. When nobody holds it, it stays in memory and on disk until
others need the room: what must leave the disk leaves memory first.

Knows neither weights nor pictures, and of engines and of the builder only how they are asked.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from server.adapters.weights import Variant
from server.builder.client import Built
from server.builder.faults import BuilderAway, PartUnfit, TooManyAtOnce
from server.engines.port import Array, EngineUnfit, Spec, Tensors
from server.families.base import Run, together

_AT_ONCE = 64  # variants that are built, loaded or wait for that: minutes of work for the builder


@dataclass(frozen=True)
class Made:
    """Where a variant came from."""

    model: str  # its name
    graph: str  # the engine whose ports it has
    source: Literal["built", "disk", "memory"]
    build_seconds: float  # 0 unless it was built for this request, or for one that came a moment before
    load_seconds: float  # 0 where it was in memory


@dataclass(frozen=True)
class Held:
    """What a request has while it holds its variants."""

    run: Run  # sends what is meant for a graph to the variant that has it
    made: tuple[Made, ...]


Hold = Callable[[Mapping[str, Variant]], AbstractAsyncContextManager[Held]]


def pristine(run: Run) -> Hold:
    """For who has engines and no builder."""

    @asynccontextmanager
    async def hold(variants: Mapping[str, Variant]) -> AsyncIterator[Held]:
        if variants:
            raise BuilderAway(f"nobody is here who could make variants of {', '.join(variants)}")
        yield Held(run, ())

    return hold


class Home(Protocol):
    """Engines that come and go by their use, see `OnDemandEngines`."""

    def add(self, spec: Spec, repository: Path) -> None:
        """Know one more engine."""

    @property
    def needed(self) -> Collection[str]:
        """Added engines whose files must stay."""

    @property
    def idle(self) -> Sequence[str]:
        """Added engines whose files must stay as long as they are loaded, least recently used first."""

    async def make_leave(self, engines: Iterable[str]) -> None:
        """Unload those of them that are idle."""

    def is_loaded(self, engine: str) -> bool:
        """Whether its next use needs no load."""

    def held(self, engine: str) -> AbstractContextManager[None]:
        """Within this the engine is not forgotten."""

    async def load(self, engine: str) -> None:
        """Make the engine ready."""


class RunAs(Protocol):
    """How an engine is run that has the ports of another, see `StepScheduler.run_as`."""

    def __call__(self, engine: str, spec: Spec, inputs: Tensors) -> Awaitable[Mapping[str, Array]]:
        """One execution of `engine`."""


class Ensure(Protocol):
    """How a variant's folder is asked for, see `Builder.ensure`."""

    def __call__(self, variant: Variant, keep: Collection[str], idle: Sequence[str]) -> Awaitable[Built]:
        """Returns when it is there, or when some of `idle` must be unloaded first; those named in `keep` stay."""


@dataclass(eq=False)
class _Making:
    """One variant that is being built, then loaded."""

    task: "asyncio.Task[Made]" = field(init=False)
    waiting: int = 0  # requests
    loads: bool = False  # it is on disk; a load goes on to its end


class Variants:
    """All variants of a gateway. `close` it at the end."""

    def __init__(self, home: Home, ensure: Ensure, folder: Path, run_as: RunAs) -> None:
        """`folder` is where the builder writes and the home reads."""
        self._home = home
        self._ensure = ensure
        self._folder = folder
        self._run_as = run_as
        self._making: dict[str, _Making] = {}

    @asynccontextmanager
    async def held(self, variants: Mapping[str, Variant]) -> AsyncIterator[Held]:
        """Variants by the name of their graph, each built, and loaded once. Raises `BuilderFault` or `EngineFault`."""
        with ExitStack() as stack:
            for variant in variants.values():
                stack.enter_context(self._home.held(variant.spec.name))
            made = await together(*(self._made(variant) for variant in variants.values()))
            names = {graph: variant.spec.name for graph, variant in variants.items()}

            async def run(spec: Spec, inputs: Tensors) -> Mapping[str, Array]:
                return await self._run_as(names.get(spec.name, spec.name), spec, inputs)

            yield Held(run, tuple(made))

    def absent(self, variants: Mapping[str, Variant]) -> list[str]:
        """The names of those that are not loaded."""
        names = (variant.spec.name for variant in variants.values())
        return [name for name in names if not self._home.is_loaded(name)]

    async def close(self) -> None:
        """What is being made is given up."""
        tasks = tuple(making.task for making in self._making.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _made(self, variant: Variant) -> Made:
        """Many callers share one build and one load; one that gives up leaves it to the others, if there are any."""
        name = variant.spec.name
        if self._home.is_loaded(name) and (self._folder / name).is_dir():  # somebody may have removed it by hand
            await self._home.load(name)  # at once: it is used now
            return Made(name, variant.graph.name, "memory", 0.0, 0.0)
        making = self._making.get(name)
        if making is None:
            if len(self._making) >= _AT_ONCE:
                raise TooManyAtOnce(
                    f"{_AT_ONCE} sets of weights are being built or loaded, as many as may be; ask again later, or for "
                    "a set that was used lately"
                )
            making = self._making[name] = _Making()
            making.task = asyncio.create_task(self._make(variant, making))
            making.task.add_done_callback(lambda task: self._end(name, making))
        making.waiting += 1
        try:
            return await asyncio.shield(making.task)
        finally:
            making.waiting -= 1
            if not making.waiting and not making.loads:
                making.task.cancel()  # nothing where it has ended
                self._forget(name, making)  # at once: who asks now asks anew

    def _end(self, name: str, making: _Making) -> None:
        self._forget(name, making)
        if not making.task.cancelled():
            making.task.exception()  # perhaps nobody waits any more who would look

    def _forget(self, name: str, making: _Making) -> None:
        if self._making.get(name) is making:
            del self._making[name]

    async def _make(self, variant: Variant, making: _Making) -> Made:
        name = variant.spec.name
        with self._home.held(name):  # also when everybody has given up
            built = await self._on_disk(variant)
            making.loads = True
            begin = time.perf_counter()
            self._home.add(variant.spec, self._folder)
            try:
                await self._home.load(name)
            except EngineUnfit as fault:
                raise PartUnfit(
                    f"what is put over {variant.graph.name} goes beyond what it can compute with: {fault}; take "
                    "smaller weights, or leave a part out"
                ) from fault
            return Made(
                model=name,
                graph=variant.graph.name,
                source="built" if built.built else "disk",
                build_seconds=built.seconds,
                load_seconds=time.perf_counter() - begin,
            )

    async def _on_disk(self, variant: Variant) -> Built:
        """Returns when its folder is there. Idle variants that the builder wants to remove for it are unloaded first:
        a file that is loaded takes its space until then, and what was removed could not be loaded again when lost."""
        built, seconds = False, 0.0
        while True:
            keep = frozenset({*self._home.needed, *self._making})
            found = await self._ensure(variant, keep, self._home.idle)
            built, seconds = built or found.built, seconds + found.seconds
            if not found.leave:
                return Built(built, seconds)
            await self._home.make_leave(found.leave)
