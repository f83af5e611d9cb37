"""The engine port: what an engine takes and gives, declared once as data, and the calls every home of engines answers.

From a `Spec` follow the ONNX axes, `config.pbtxt`, the shape check at run time and the fake engine of the tests. This
file knows nothing of Triton, of ONNX or of diffusion.

Faults, all raised by `Engines` methods:

    EngineFault                the engine failed; nothing the caller did
    +-- EngineUnavailable      it is not there (yet, or any more): the same call may work later
    +-- EngineOverloaded       its queue is full: the same call may work later
    +-- EngineNoRoom           there is no memory to load it into: the same call may work later
    +-- EngineUnfit            its weights make of what it is given nothing that is an answer: it never will work
    +-- EngineTimeout          it did not answer in the time the caller gave
    +-- EngineInputError       the tensors do not fit its spec: a mistake in the calling code
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

DType = Literal["float32", "int64", "uint8"]
Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]


class EngineFault(Exception):
    """The engine failed while working on tensors that fit its spec."""


class EngineUnavailable(EngineFault):
    """The engine cannot be reached or is not loaded."""

    def __init__(self, text: str, retry_seconds: float = 2.0) -> None:
        super().__init__(text)
        self.retry_seconds = retry_seconds


class EngineOverloaded(EngineFault):
    """The engine's queue is full."""


class EngineNoRoom(EngineFault):
    """The memory budget has no room for the engine."""

    def __init__(self, text: str, retry_seconds: float) -> None:
        super().__init__(text)
        self.retry_seconds = retry_seconds


class EngineUnfit(EngineFault):
    """The engine's weights, which somebody put together, give no answer."""


class EngineTimeout(EngineFault):
    """The engine did not answer in the time given."""


class EngineInputError(EngineFault):
    """Names, dtypes or shapes differ from the spec."""


@dataclass(frozen=True)
class Port:
    """One tensor. A string in `shape` names a free axis; equal names in one spec mean equal lengths."""

    name: str
    dtype: DType
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Spec:
    """An engine. The first axis of every port is the batch axis "rows"; one call carries at most `max_rows` of them."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    max_rows: int

    def check(self, tensors: Tensors) -> None:
        """Raise `EngineInputError` with every way in which `tensors` differ from the declared inputs."""
        axes: dict[str, int] = {}
        problems = [f"{name} is not an input" for name in tensors.keys() - {port.name for port in self.inputs}]
        for port in self.inputs:
            tensor = tensors.get(port.name)
            problems += [f"{port.name} is missing"] if tensor is None else _differences(port, tensor, axes)
        rows = axes.get("rows", 0)
        if rows > self.max_rows:
            problems.append(f"{rows} rows are more than the {self.max_rows} of one call")
        if problems:
            raise EngineInputError(f"{self.name}: {'; '.join(problems)}")


def _differences(port: Port, tensor: Array, axes: dict[str, int]) -> list[str]:
    """How one tensor differs from its port; free axes met for the first time are recorded in `axes`."""
    found = f"{port.name} is {tensor.dtype}{list(tensor.shape)}, declared {port.dtype}{list(port.shape)}"
    if tensor.dtype != np.dtype(port.dtype) or tensor.ndim != len(port.shape):
        return [found]
    for declared, length in zip(port.shape, tensor.shape, strict=True):
        wanted = axes.setdefault(declared, length) if isinstance(declared, str) else declared
        if length != wanted or length == 0:
            return [found]
    return []


@dataclass(frozen=True)
class Usage:
    """What an engine has done since it was loaded; the difference of two of them is what happened in between."""

    executions: int
    seconds: float  # spent executing, without waiting and transport


class State(Enum):
    """Whether an engine would answer, and if not, why."""

    READY = "it is loaded and has proved that it computes rightly"
    UNLOADED = "its next use loads it"
    LOADING = "it is being loaded, or waits for room"
    LOST = "it was to be there and is not"


@dataclass(frozen=True)
class Condition:
    """An engine's state and what it weighs."""

    state: State
    memory: int  # bytes, estimated: what it takes while it is loaded
    taken: int  # bytes of that which are not free for others now


class Engines(Protocol):
    """A home of engines. Every method may be called from many tasks at once."""

    def add(self, spec: Spec, repository: Path) -> None:
        """Know one more engine, whose folder lies in `repository`; nothing is loaded. Again changes nothing."""

    def forget(self, engine: str) -> None:
        """Know an added engine no more. It must not be loaded, nor just be loaded or unloaded."""

    async def load(self, engine: str) -> None:
        """Make the engine ready; returns when it is, and at once if it was."""

    async def unload(self, engine: str) -> None:
        """Give its memory back; returns when it is free. A later `load` restores the engine."""

    async def run(self, engine: str, inputs: Tensors, timeout: float | None = None) -> dict[str, Array]:
        """One execution. `timeout` in seconds. Raises the faults named in this module's docstring."""

    async def ready(self) -> Sequence[str]:
        """The names of the engines that would answer now."""

    async def answers(self) -> bool:
        """Whether the home itself is there, loaded engines or not."""

    async def usage(self) -> Mapping[str, Usage]:
        """What each loaded engine has done so far."""

    async def close(self) -> None:
        """Let go of every resource; nothing may be called afterwards."""
