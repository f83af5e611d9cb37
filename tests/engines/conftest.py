"""One toy repository and one embedded Triton for all tests of this folder that do not kill it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from engines import toy

from server.engines.supervisor import EmbeddedTriton


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy engines with their golden tensors."""
    root = tmp_path_factory.mktemp("repository")
    toy.write_repository(root)
    return root


@pytest.fixture(scope="session")
def variants(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second repository: `toy_mix` under other names."""
    root = tmp_path_factory.mktemp("variants")
    for name in toy.OTHER_MIXES:
        toy.copy_engine(repository, toy.MIX.name, root, name)
    return root


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def triton(
    repository: Path, variants: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EmbeddedTriton]:
    """A running embedded Triton; nothing is loaded."""
    async with EmbeddedTriton(repository, tmp_path_factory.mktemp("cache"), variants=variants) as supervisor:
        yield supervisor
