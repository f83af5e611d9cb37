"""A service of one's own for one command: started, waited for, stopped. Needs the serving set installed beside it."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_START_SECONDS = 120.0  # a cold disk and a first compilation of the networks; usually 5


class ServiceFailed(Exception):
    """It cannot start here, or it did not come up; says why."""


def require_service() -> None:
    """Raises `ServiceFailed` where only the client is installed."""
    if find_spec("tritonclient") is None:  # of the serving set; the gateway's own code comes with the client
        raise ServiceFailed(
            "only the client is installed here, not what serving needs: pip install -e '.[serve]' in a clone of the "
            "project, or call a service that runs elsewhere"
        )


@contextmanager
def local_service(address: str) -> Iterator[None]:
    """`python -m server` on `address` until the block ends, by SIGTERM or SIGHUP too. Raises `ServiceFailed`."""
    require_service()
    if _answers(address):
        raise ServiceFailed(
            f"cannot start a service on {address}: something answers there already; call it without --start-service, "
            "or name a free port with --address"
        )
    with signals_end_the_block(), tempfile.TemporaryFile("w+") as log:
        environment = {**os.environ, "MEDIAGEN_GRPC_ADDRESS": address, "MEDIAGEN_HTTP_ADDRESS": "none"}
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


@contextmanager
def signals_end_the_block() -> Iterator[None]:
    """SIGTERM and a closed terminal raise `SystemExit` in the block, so that what it started is stopped.

    The service is in a session of its own and hears neither. A signal that is ignored (nohup) stays ignored.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)  # as a shell counts

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def _answers(address: str) -> bool:
    """Whether somebody listens there. An address that is none is the service's to refuse."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        return False
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
    except OSError:
        return False
    return True


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
