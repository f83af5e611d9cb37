"""What one connection may take beside a request's work: a place among a bounded number, and a bounded time for what
its caller says and for taking what it is told.
"""

import asyncio
import json
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 512  # far more than requests are admitted; a process may have 1024 files and sockets by default
HEAD_SECONDS = 20.0  # until a request's line and headers are there, counted from the connection or their first byte
REST_SECONDS = 60.0  # until a body's end that nobody waits for is there, counted from its first byte after the answer
WRITE_SECONDS = 120.0  # until an answer is taken: 100 MB by who takes 1 MB in a second


class BoundedProtocol(H11Protocol):
    """Uvicorn bounds neither how many connections there are, nor how long one is silent before its first request or
    within a body whose answer is given, nor how long an answer lies here untaken."""

    _late: asyncio.TimerHandle | None = None
    _awaited: type[h11.IDLE | h11.SEND_BODY] | None = None  # which part of a request that timer is for
    _untaken: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        if len(self.connections) >= MAX_CONNECTIONS:
            self.transport = transport
            transport.write(_reply(HTTPStatus.SERVICE_UNAVAILABLE, "as many connections as there may be; retry in 1 s"))
            transport.close()
            return
        transport.set_write_buffer_limits(high=0)  # writing pauses while anything is untaken
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._await(None)
        super().connection_lost(exc)  # which resumes writing

    def pause_writing(self) -> None:
        super().pause_writing()
        self._untaken = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None

    def send_400_response(self, msg: str) -> None:
        """In JSON, as the rest; an answer that has begun is cut."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            why = "not as HTTP/1.1 has it; look at the request line, the headers and the body's length"
            self.transport.write(_reply(HTTPStatus.BAD_REQUEST, why))
        self.transport.close()

    def _watch(self) -> None:
        theirs = self.conn.their_state
        if self.transport.is_closing():
            self._await(None)
        elif theirs is h11.IDLE or (theirs is h11.SEND_BODY and self.conn.our_state is h11.DONE):
            self._await(theirs)
        else:  # the body is waited for by who reads it
            self._await(None)

    def _await(self, part: type[h11.IDLE | h11.SEND_BODY] | None) -> None:
        """Each part has its time once, however it trickles."""
        if part is self._awaited:
            return
        self._awaited = part
        if self._late is not None:
            self._late.cancel()
            self._late = None
        if part is not None:
            self._late = self.loop.call_later(HEAD_SECONDS if part is h11.IDLE else REST_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if self._awaited is h11.IDLE and self.conn.trailing_data[0]:  # else nobody waits for words
            self.transport.write(_reply(HTTPStatus.REQUEST_TIMEOUT, f"no whole request came within {HEAD_SECONDS:g} s"))
        self.transport.close()


_REASONS = {
    HTTPStatus.BAD_REQUEST: "NOT_HTTP",
    HTTPStatus.REQUEST_TIMEOUT: "HEAD_TIMEOUT",
    HTTPStatus.SERVICE_UNAVAILABLE: "OVERLOADED",
}


def _reply(status: HTTPStatus, message: str) -> bytes:
    """The last on its connection."""
    content = json.dumps({"message": message, "reason": _REASONS[status]}).encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        "content-type: application/json",
        f"content-length: {len(content)}",
        *(() if status is HTTPStatus.BAD_REQUEST else ("retry-after: 1",)),
        "connection: close",
    )
    return "\r\n".join((*head, "", "")).encode() + content
