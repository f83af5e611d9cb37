"""A service of one's own for one command: started, waited for, stopped. Needs the serving set installed beside it."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_START_SECONDS = 120.0  # a cold disk and a first compilation of the networks; usually 5


class ServiceFailed(Exception):
    """It did not come up; says why."""


@contextmanager
def local_service(address: str) -> Iterator[None]:
    """`python -m server` on `address` until the block ends. Raises `ServiceFailed`."""
    if find_spec("server") is None:
        raise ServiceFailed("the service is not installed here, only its client: pip install 'mediagen[serve]'")
    with tempfile.TemporaryFile("w+") as log:
        environment = {**os.environ, "MEDIAGEN_GRPC_ADDRESS": address}
        process = subprocess.Popen(
            [sys.executable, "-m", "server"], env=environment, stderr=log, start_new_session=True
        )
        try:
            if not _serves(address, process):
                process.terminate()
                process.wait()
                log.seek(0)
                raise ServiceFailed(f"the service did not start: {log.read().strip()[-2000:] or 'it said nothing'}")
            yield
        finally:
            process.terminate()
            process.wait()


def _serves(address: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether it reports SERVING before the time is up or the process ends."""
    end = time.monotonic() + _START_SECONDS
    with grpc.insecure_channel(address, options=(("grpc.max_reconnect_backoff_ms", 200),)) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while process.poll() is None and time.monotonic() < end:
            try:
                reply = health.Check(health_pb2.HealthCheckRequest(), timeout=1)  # type: ignore[attr-defined]  # typeshed
            except grpc.RpcError:
                reply = None
            if reply is not None and reply.status == health_pb2.HealthCheckResponse.SERVING and process.poll() is None:
                return True
            time.sleep(0.1)
    return False
