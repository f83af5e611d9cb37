"""What one connection may take before it says what it wants: a place among a bounded number, and a bounded time."""

import asyncio
import json
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 512  # far more than requests are admitted; a process may have 1024 files and sockets by default
HEAD_SECONDS = 20.0  # until a request's line and headers are there, counted from the connection or their first byte


class BoundedProtocol(H11Protocol):
    """Uvicorn bounds neither how many connections there are nor how long one is silent before its first request."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        if len(self.connections) >= MAX_CONNECTIONS:
            self.transport = transport
            transport.write(_reply(HTTPStatus.SERVICE_UNAVAILABLE, "as many connections as there may be; retry in 1 s"))
            transport.close()
            return
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._rest()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _rest(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        if self.conn.trailing_data[0]:  # else nobody waits for words
            self.transport.write(_reply(HTTPStatus.REQUEST_TIMEOUT, f"no whole request came within {HEAD_SECONDS:g} s"))
        self.transport.close()


_REASONS = {HTTPStatus.SERVICE_UNAVAILABLE: "OVERLOADED", HTTPStatus.REQUEST_TIMEOUT: "HEAD_TIMEOUT"}


def _reply(status: HTTPStatus, message: str) -> bytes:
    """The last on its connection."""
    content = json.dumps({"message": message, "reason": _REASONS[status]}).encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        "content-type: application/json",
        f"content-length: {len(content)}",
        "retry-after: 1",
        "connection: close",
    )
    return "\r\n".join((*head, "", "")).encode() + content
