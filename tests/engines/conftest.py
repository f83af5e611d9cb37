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


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def triton(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedTriton]:
    """A running embedded Triton; nothing is loaded."""
    async with EmbeddedTriton(repository, tmp_path_factory.mktemp("cache")) as supervisor:
        yield supervisor
