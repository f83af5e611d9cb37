"""Engines that are numpy functions, with a handle on what tests of other parts need: when they answer, and what with.

The contract tests of this folder hold it to what real engines do.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.engines.port import (
    Array,
    EngineFault,
    EngineInputError,
    EngineTimeout,
    EngineUnavailable,
    Spec,
    Tensors,
    Usage,
)

Compute = Callable[[Tensors], Mapping[str, Array]]


@dataclass
class _State:
    spec: Spec
    compute: Compute
    loaded: bool = False
    usage: Usage = field(default_factory=lambda: Usage(0, 0.0))
    faults: list[EngineFault] = field(default_factory=list)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # one execution at a time, as everywhere


class FakeEngines:
    """`Engines` over functions of tensors; `compute` is keyed by engine."""

    def __init__(self, specs: Iterable[Spec], compute: Mapping[str, Compute]) -> None:
        """Nothing is loaded yet."""
        self.calls: list[tuple[str, dict[str, Array]]] = []  # every execution that began, with its inputs
        self.began = asyncio.Event()  # set at the beginning of each execution; tests clear it
        self.go = asyncio.Event()  # an execution waits for it; clear it to hold all of them
        self.go.set()
        self._compute = compute
        self._states = {spec.name: _State(spec, compute[spec.name]) for spec in specs}

    def fail(self, engine: str, fault: EngineFault) -> None:
        """Let one future execution of the engine end with `fault`; several wait in line."""
        self._state(engine).faults.append(fault)

    def add(self, spec: Spec, repository: Path) -> None:
        """See `Engines`. What it computes was told at the beginning."""
        self._states.setdefault(spec.name, _State(spec, self._compute[spec.name]))

    def forget(self, engine: str) -> None:
        """See `Engines`."""
        self._states.pop(engine, None)

    async def load(self, engine: str) -> None:
        """See `Engines`."""
        self._state(engine).loaded = True

    async def unload(self, engine: str) -> None:
        """See `Engines`."""
        state = self._state(engine)
        state.loaded = False
        state.usage = Usage(0, 0.0)

    async def run(self, engine: str, inputs: Tensors, timeout: float | None = None) -> dict[str, Array]:
        """See `Engines`."""
        state = self._state(engine)
        state.spec.check(inputs)
        if not state.loaded:
            raise EngineUnavailable(f"{engine} is not loaded")
        try:
            async with asyncio.timeout(timeout), state.turn:
                return await self._execute(state, inputs)
        except TimeoutError as error:
            raise EngineTimeout(f"{engine} did not answer within {timeout} s") from error

    async def _execute(self, state: _State, inputs: Tensors) -> dict[str, Array]:
        self.calls.append((state.spec.name, dict(inputs)))
        self.began.set()
        await self.go.wait()
        if state.faults:
            raise state.faults.pop(0)
        started = time.perf_counter()
        await asyncio.sleep(0)  # a real call lets other tasks run
        try:
            outputs = {name: output.copy() for name, output in state.compute(inputs).items()}
        except ValueError as error:
            raise EngineFault(f"{state.spec.name}: {error}") from error
        state.usage = Usage(state.usage.executions + 1, state.usage.seconds + time.perf_counter() - started)
        return outputs

    async def ready(self) -> Sequence[str]:
        """See `Engines`."""
        return tuple(name for name, state in self._states.items() if state.loaded)

    async def answers(self) -> bool:
        """See `Engines`."""
        return True

    async def usage(self) -> Mapping[str, Usage]:
        """See `Engines`."""
        return {name: state.usage for name, state in self._states.items() if state.loaded}

    async def close(self) -> None:
        """See `Engines`."""
        for state in self._states.values():
            state.loaded = False

    def _state(self, engine: str) -> _State:
        if engine not in self._states:
            raise EngineInputError(f"there is no engine {engine!r}, only {', '.join(sorted(self._states))}")
        return self._states[engine]
