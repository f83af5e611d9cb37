"""What several test folders need: the default engines, a valid request, and a real service over the real Triton."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mediagen.v1 import image_pb2 as pb

from server.catalog import Catalog, read_catalog

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 90  # of a service on a busy machine that compiles its networks for the first time


@pytest.fixture(scope="session")
def repository() -> Path:
    """The model repository of the default checkpoint."""
    return ROOT / "model_repository"


@pytest.fixture(scope="session")
def catalog(repository: Path) -> Catalog:
    """The default engines."""
    return read_catalog(repository)


@pytest.fixture
def request_message() -> pb.GenerateRequest:
    """The smallest request that is served."""
    return pb.GenerateRequest(engine="sd15", prompt="a red house")


@dataclass(frozen=True)
class RunningService:
    """`python -m server` in a process of its own."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait_until_serving(self, seconds: float) -> None:
        """Ask for its health until it serves. Raises `AssertionError` with its log when it ends or stays away."""
        end = time.monotonic() + seconds
        with grpc.insecure_channel(self.address, options=(("grpc.max_reconnect_backoff_ms", 200),)) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            while time.monotonic() < end and self.process.poll() is None:
                with contextlib.suppress(grpc.RpcError):
                    reply = health.Check(health_pb2.HealthCheckRequest(), timeout=1)
                    if reply.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                time.sleep(0.1)  # a server that is not there yet has no event to wait for
        raise AssertionError(f"the service does not serve: {self.log.read_text()}")


def start_service(folder: Path, **settings: str) -> RunningService:
    """A service on a free port, once it serves. Its log and compiled networks are in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MEDIAGEN_")},
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}",
        "MEDIAGEN_GRPC_ADDRESS": address,
        "MEDIAGEN_CACHE": str(folder / "cache"),
        **settings,
    }
    log = folder / "service.log"
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, "-m", "server"], env=environment, cwd=folder, stderr=output)
    service = RunningService(address, process, log)
    service.wait_until_serving(START_SECONDS)
    return service


def stop_service(service: RunningService) -> int:
    """SIGTERM; returns the exit status."""
    service.process.send_signal(signal.SIGTERM)
    return service.process.wait(timeout=60)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service for all tests that leave it as it was."""
    running = start_service(tmp_path_factory.mktemp("service"))
    yield running
    stop_service(running)


@pytest.fixture(scope="session")
def service_address(service: RunningService) -> str:
    """host:port of the shared service."""
    return service.address
