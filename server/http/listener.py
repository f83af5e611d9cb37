"""Uvicorn within the service's event loop: it neither takes signals nor writes logs of its own."""

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn
from starlette.types import ASGIApp

from server.http.connections import BoundedProtocol

KEEP_ALIVE_SECONDS = 75  # longer than the callers' pools keep a connection, which would otherwise be closed under them
LAST_WORD_SECONDS = 2.0  # for telling those whose requests are cut


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals are the service's."""
        yield


class Listener:
    """An application on a socket."""

    def __init__(self, app: ASGIApp, listening: socket.socket, grace_seconds: float) -> None:
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            forwarded_allow_ips="127.0.0.1",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(grace_seconds)),
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[listening]))

    async def stop(self) -> None:
        """New connections are refused; running requests may end within the grace time."""
        self._server.should_exit = True
        await self._task
        if cut := self._server.server_state.tasks:  # what the grace time was too short for
            await asyncio.wait(cut, timeout=LAST_WORD_SECONDS)


def listen(address: str) -> socket.socket:
    """A socket on host:port. Raises `OSError`."""
    host, _, port = address.rpartition(":")
    family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # not held by closed connections of the last run
        listening.bind(where)
        listening.listen(128)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening
