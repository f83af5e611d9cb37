"""Whatever a servicer raises, a caller gets a status and an id; nothing of the inside gets out."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NoReturn

import grpc
import pytest
from conftest import HANG_SECONDS
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from mediagen.v1 import image_pb2 as pb
from mediagen.v1 import image_pb2_grpc
from rpc.conftest import status_of

from server.engines.port import EngineUnavailable
from server.rpc.interceptor import CallInterceptor, Context

SECRET = "/srv/weights is encrypted with 1234"


class Failing(image_pb2_grpc.ImageServiceServicer):
    """Raises what it is told to: at once, or after a first message."""

    def __init__(self) -> None:
        self.error: BaseException = KeyError(SECRET)
        self.closed = False

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        raise self.error

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: Context
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        try:
            yield pb.GenerateStreamResponse()
            raise self.error
        finally:
            self.closed = True


@pytest.fixture
def failing() -> Failing:
    """A servicer with a bug."""
    return Failing()


@pytest.fixture
async def channel(failing: Failing) -> AsyncIterator[grpc.aio.Channel]:
    """A way to it through the interceptor."""
    server = grpc.aio.server(interceptors=(CallInterceptor(),))
    image_pb2_grpc.add_ImageServiceServicer_to_server(failing, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as connected:
        yield connected
    await server.stop(None)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> image_pb2_grpc.ImageServiceStub:
    """Calls."""
    return image_pb2_grpc.ImageServiceStub(channel)


Call = grpc.aio.UnaryUnaryCall | grpc.aio.UnaryStreamCall


def call_of(stub: image_pb2_grpc.ImageServiceStub, method: str) -> Call:
    """A running call that goes by the id mine-7."""
    return getattr(stub, method)(
        pb.GenerateRequest() if method == "Generate" else pb.GenerateStreamRequest(),
        metadata=(("x-request-id", "mine-7"),),
    )


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_a_bug_is_internal_and_tells_its_id_but_not_its_text(
    stub: image_pb2_grpc.ImageServiceStub, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "server.rpc.interceptor"):
        call = call_of(stub, method)
        assert await status_of(call) == grpc.StatusCode.INTERNAL
    told = f"{await call.details()} {await call.trailing_metadata()}"
    assert SECRET not in told
    assert "mine-7" in await call.details()
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine-7"
    assert "mine-7" in caplog.text  # and the log has the cause under that id
    assert SECRET in caplog.text


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_a_passed_deadline_is_told_by_the_service_itself(
    stub: image_pb2_grpc.ImageServiceStub, failing: Failing, method: str
) -> None:
    failing.error = TimeoutError()
    call = call_of(stub, method)
    assert await status_of(call) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert await call.details() == "the call's deadline has passed"


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_a_fault_carries_its_details_and_the_calls_id(
    stub: image_pb2_grpc.ImageServiceStub, failing: Failing, method: str
) -> None:
    failing.error = EngineUnavailable("gone")
    call = call_of(stub, method)
    assert (await status_of(call), await call.details()) == (grpc.StatusCode.UNAVAILABLE, "gone")
    trailing = await call.trailing_metadata()
    assert dict(trailing)["x-request-id"] == "mine-7"
    code, text = grpc.StatusCode.UNAVAILABLE, "gone"
    status = rpc_status.from_call(
        SimpleNamespace(trailing_metadata=lambda: tuple(trailing), code=lambda: code, details=lambda: text)
    )
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.seconds == 2


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
@pytest.mark.parametrize("data", [b"\xff\xff", b"\x12\x02\xff\xfe", b"\x12\x05ab"], ids=["noise", "not UTF-8", "cut"])
async def test_bytes_that_are_no_message_are_the_callers_mistake(
    channel: grpc.aio.Channel, failing: Failing, method: str, data: bytes
) -> None:
    failing.error = EngineUnavailable("reached")
    path = f"/mediagen.v1.ImageService/{method}"
    if method == "Generate":
        call: Call = channel.unary_unary(path)(data)
    else:
        data = b"\x0a" + bytes([len(data)]) + data  # in the request that it carries
        call = channel.unary_stream(path)(data)
    assert await status_of(call) == grpc.StatusCode.INVALID_ARGUMENT
    assert "request: not readable" in await call.details()


class Aborted(Exception):
    """What a real context raises to end the servicer."""


@dataclass(frozen=True)
class Caller:
    """What the interceptor asks of a call's context, where a real one would end the call by itself."""

    remaining: float | None  # seconds

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def set_trailing_metadata(self, metadata: object) -> None:
        return

    def time_remaining(self) -> float | None:
        return self.remaining

    async def abort(self, code: grpc.StatusCode, message: str, metadata: object) -> NoReturn:
        raise Aborted(code)


async def wrapped(handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
    """The handler as a server gets it."""

    async def found(details: object) -> grpc.RpcMethodHandler:
        return handler

    details = SimpleNamespace(method="/mediagen.v1.ImageService/any")
    outer = await CallInterceptor().intercept_service(found, details)
    assert outer is not None
    return outer


async def test_the_service_keeps_the_deadline_itself() -> None:
    async def hang(request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        await asyncio.Event().wait()
        raise AssertionError

    handler = await wrapped(grpc.unary_unary_rpc_method_handler(hang))
    with pytest.raises(Aborted) as ended:
        await asyncio.wait_for(handler.unary_unary(pb.GenerateRequest(), Caller(remaining=0.01)), HANG_SECONDS)
    assert ended.value.args == (grpc.StatusCode.DEADLINE_EXCEEDED,)


async def test_a_stream_that_is_left_between_two_messages_is_closed_before_the_call_is_over(failing: Failing) -> None:
    handler = await wrapped(grpc.unary_stream_rpc_method_handler(failing.GenerateStream))
    messages = handler.unary_stream(pb.GenerateStreamRequest(), Caller(remaining=None))
    await anext(messages)
    await messages.aclose()
    assert failing.closed
