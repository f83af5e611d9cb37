"""Where the engines of a comparison with diffusers run."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from server.catalog import Engine
from server.engines.local import LocalEngines
from server.families.base import Run
from server.scheduler import StepScheduler


@asynccontextmanager
async def local(repository: Path, engine: Engine, cache: Path) -> AsyncIterator[Run]:
    """In this process: the contract tests prove Triton equal to it, bit by bit."""
    engines = LocalEngines(repository, engine.specs, cache)
    for spec in engine.specs:
        await engines.load(spec.name)
    yield StepScheduler(engines).run
    await engines.close()
