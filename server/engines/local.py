"""Engines in this process, for platforms where the embedded Triton does not run: same repository, same settings.

Each engine computes in one worker thread of its own: a call waits for the one before it, as in Triton.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from server.engines import config
from server.engines.openvino_runtime import OpenVINOEngine
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


class LocalEngines:
    """`Engines` over OpenVINO in worker threads."""

    def __init__(self, repository: Path, specs: Iterable[Spec], cache: Path | None = None) -> None:
        """Nothing is loaded yet. `cache` is a folder for compiled engines, which then load faster the next time; of
        engines that are added nothing is kept there.
        """
        self._specs = {spec.name: spec for spec in specs}
        self._repositories = dict.fromkeys(self._specs, repository)
        self._caches: dict[str, Path] = {} if cache is None else {name: cache / name for name in self._specs}
        self._loaded: dict[str, _Worker] = {}
        self._locks = {name: asyncio.Lock() for name in self._specs}

    def add(self, spec: Spec, repository: Path) -> None:
        """See `Engines`."""
        if spec.name not in self._specs:
            self._specs[spec.name] = spec
            self._repositories[spec.name] = repository
            self._locks[spec.name] = asyncio.Lock()

    def forget(self, engine: str) -> None:
        """See `Engines`."""
        self._specs.pop(engine, None)
        self._repositories.pop(engine, None)
        self._locks.pop(engine, None)

    async def load(self, engine: str) -> None:
        """See `Engines`."""
        spec = self._spec(engine)
        async with self._locks[engine]:
            if engine in self._loaded:
                return
            try:
                self._loaded[engine] = await asyncio.to_thread(
                    _Worker, self._repositories[engine], spec, self._caches.get(engine)
                )
            except (ValueError, RuntimeError) as error:  # RuntimeError is OpenVINO's
                raise EngineUnavailable(f"{engine} cannot be loaded: {error}") from error

    async def unload(self, engine: str) -> None:
        """See `Engines`. An execution under way is finished first."""
        self._spec(engine)
        async with self._locks[engine]:
            worker = self._loaded.pop(engine, None)
            if worker is not None:
                await asyncio.to_thread(worker.stop)

    async def run(self, engine: str, inputs: Tensors, timeout: float | None = None) -> dict[str, Array]:
        """See `Engines`. A cancelled call leaves the queue; one that is being executed is finished and dropped."""
        self._spec(engine).check(inputs)
        worker = self._loaded.get(engine)
        if worker is None:
            raise EngineUnavailable(f"{engine} is not loaded")
        try:
            async with asyncio.timeout(timeout):
                return await worker.run(inputs)
        except TimeoutError as error:
            raise EngineTimeout(f"{engine} did not answer within {timeout} s") from error

    async def ready(self) -> Sequence[str]:
        """See `Engines`."""
        return tuple(name for name in self._specs if name in self._loaded)

    async def answers(self) -> bool:
        """See `Engines`."""
        return True

    async def usage(self) -> Mapping[str, Usage]:
        """See `Engines`."""
        return {name: worker.usage for name, worker in self._loaded.items()}

    async def close(self) -> None:
        """See `Engines`."""
        for engine in tuple(self._loaded):
            await self.unload(engine)

    def _spec(self, engine: str) -> Spec:
        spec = self._specs.get(engine)
        if spec is None:
            raise EngineInputError(f"there is no engine {engine!r}, only {', '.join(sorted(self._specs)) or 'none'}")
        return spec


class _Worker:
    """One loaded engine and the thread it computes in."""

    def __init__(self, repository: Path, spec: Spec, cache: Path | None) -> None:
        settings = config.read(repository, spec.name)
        outputs = [port.name for port in spec.outputs]
        self._engine = OpenVINOEngine(settings.model, outputs, settings.precision, cache)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=spec.name)
        self._name = spec.name
        self.usage = Usage(0, 0.0)

    async def run(self, inputs: Tensors) -> dict[str, Array]:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._execute, inputs)
        except RuntimeError as error:  # OpenVINO's, or the thread was stopped by an unload
            raise EngineFault(f"{self._name}: {error}") from error

    def _execute(self, inputs: Tensors) -> dict[str, Array]:
        started = time.perf_counter()
        outputs = self._engine.run(inputs)
        self.usage = Usage(self.usage.executions + 1, self.usage.seconds + time.perf_counter() - started)
        return outputs

    def stop(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
