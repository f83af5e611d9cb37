"""Around every call: its id, its deadline, and the one place where a fault becomes a status."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from server.rpc.errors import Fault, fault_of, trailers
from server.violations import InvalidRequest, Violation, quoted

log = logging.getLogger(__name__)
request_id: ContextVar[str] = ContextVar("request_id")
tenant: ContextVar[str] = ContextVar("tenant", default="default")  # whose assets a call may use
TENANT = "x-mediagen-tenant"  # metadata and header that says so; there are no keys yet
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"  # generic in the type stubs only
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


_ARITY = {False: "unary", True: "stream"}
_MAKERS: dict[str, Callable[..., Handler]] = {
    "unary_unary": grpc.unary_unary_rpc_method_handler,
    "unary_stream": grpc.unary_stream_rpc_method_handler,
    "stream_unary": grpc.stream_unary_rpc_method_handler,
    "stream_stream": grpc.stream_stream_rpc_method_handler,
}


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps unary and streaming replies alike."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith("/grpc."):  # health and reflection manage alone
            return handler
        behaviour: Any = next(filter(None, (getattr(handler, kind) for kind in _MAKERS)))
        wrap = _streaming if handler.response_streaming else _unary
        kind = f"{_ARITY[handler.request_streaming]}_{_ARITY[handler.response_streaming]}"
        read = handler.request_deserializer if handler.request_streaming else _reader(handler.request_deserializer)
        return _MAKERS[kind](wrap(behaviour), read, handler.response_serializer)


class Received:
    """A request until it is taken: gRPC holds what it deserialized for as long as the call lasts, and the files in it
    are of no use once they have been read."""

    def __init__(self, request: Message | InvalidRequest) -> None:
        self._request = [request]

    def take(self) -> Message:
        """Once. Raises `InvalidRequest` for what is no message."""
        request = self._request.pop()
        if isinstance(request, InvalidRequest):
            raise request
        return request


def _reader(deserialize: Any) -> Callable[[bytes], Received]:
    """gRPC itself would tell of bytes that are no message as UNKNOWN; here they reach the table of faults."""

    def read(data: bytes) -> Received:
        try:
            return Received(deserialize(data))
        except DecodeError as error:
            return Received(InvalidRequest((Violation("request", f"not readable ({error}); texts must be UTF-8"),)))

    return read


def _message(request: Any) -> Any:
    """A stream of requests is handed on as it is."""
    return request.take() if isinstance(request, Received) else request


def _unary(behaviour: Callable[[Any, Context], Awaitable[Message]]) -> Callable[[Any, Context], Awaitable[Message]]:
    async def call(request: Any, context: Context) -> Message:
        _begin(context)
        try:
            set_tenant(dict(context.invocation_metadata() or ()).get(TENANT))
            async with asyncio.timeout(context.time_remaining()):
                return await behaviour(_message(request), context)
        except Exception as error:
            await _abort(context, error)

    return call


def _streaming(
    behaviour: Callable[[Any, Context], AsyncGenerator[Message, None]],
) -> Callable[[Any, Context], AsyncGenerator[Message, None]]:
    async def call(request: Any, context: Context) -> AsyncGenerator[Message, None]:
        _begin(context)
        try:
            set_tenant(dict(context.invocation_metadata() or ()).get(TENANT))
            async with (
                asyncio.timeout(context.time_remaining()),
                aclosing(behaviour(_message(request), context)) as messages,
            ):
                async for message in messages:
                    yield message
        except Exception as error:
            await _abort(context, error)

    return call


def _begin(context: Context) -> None:
    """Take the caller's `x-request-id` or draw one, and send it back in the trailers."""
    given = dict(context.invocation_metadata() or ()).get("x-request-id", "")
    request_id.set(given[:128] if isinstance(given, str) and given else uuid.uuid4().hex)
    context.set_trailing_metadata((("x-request-id", request_id.get()),))


def set_tenant(given: str | bytes | None) -> None:
    """For the rest of this call; None: nobody said. Raises `InvalidRequest`."""
    if given is not None and not (isinstance(given, str) and _TENANT.fullmatch(given)):
        allowed = "1 to 64 letters, digits, '.', '_' and '-'"
        raise InvalidRequest((Violation(TENANT, f"{quoted(str(given))} is no tenant's name: {allowed}"),))
    tenant.set("default" if given is None else given)


async def _abort(context: Context, error: Exception) -> NoReturn:
    fault = fault_of(error)
    if fault is None:
        log.error("request %s failed", request_id.get(), exc_info=error)
        message = f"a bug in the service; its log has the cause under request id {request_id.get()}"
        fault = Fault(grpc.StatusCode.INTERNAL, 500, "BUG", message)
    await context.abort(fault.code, fault.message, (("x-request-id", request_id.get()), *trailers(fault)))
