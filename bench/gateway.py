"""A gateway to measure: `python -m server` in a process of its own, as users run it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_START_SECONDS = 180.0  # a cold cache on a loaded machine


@dataclass(frozen=True)
class Gateway:
    """A running one."""

    pid: int
    address: str  # host:port
    start_seconds: float  # from the process's begin to SERVING


@contextmanager
def gateway(settings: Mapping[str, str]) -> Iterator[Gateway]:
    """On a free port, with these environment variables besides the caller's, until the block ends."""
    address = f"127.0.0.1:{_free_port()}"
    environment = {
        **os.environ,
        "MEDIAGEN_LOG_LEVEL": "WARNING",
        "MEDIAGEN_HTTP_ADDRESS": "none",
        **settings,
        "MEDIAGEN_GRPC_ADDRESS": address,
    }
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "server"], env=environment, start_new_session=True)
    try:
        _wait(address, process)
        yield Gateway(process.pid, address, time.perf_counter() - begin)
    finally:
        process.terminate()
        process.wait()


def load() -> str:
    """What else the machine does, for the head of every table: without it no figure can be read."""
    one, five, _ = os.getloadavg()
    return f"{os.cpu_count()} cores, load average {one:.1f} (1 min) and {five:.1f} (5 min)"


def resident_mib(pid: int) -> float:
    """The most physical memory that a process has held so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def maps(pid: int, library: str) -> bool:
    """Whether a process has loaded a file with `library` in its path's last parts."""
    return any(f"/{library}" in line for line in Path(f"/proc/{pid}/maps").read_text().splitlines())


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_SECONDS
    with grpc.insecure_channel(address, options=(("grpc.max_reconnect_backoff_ms", 50),)) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while time.monotonic() < end:
            if process.poll() is not None:
                raise SystemExit(f"the gateway ended with code {process.returncode} before it served")
            try:
                reply = health.Check(health_pb2.HealthCheckRequest(), timeout=1)  # type: ignore[attr-defined]  # typeshed
            except grpc.RpcError:
                reply = None
            if reply is not None and reply.status == health_pb2.HealthCheckResponse.SERVING:
                return
            time.sleep(0.02)
    raise SystemExit(f"the gateway did not serve within {_START_SECONDS:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
