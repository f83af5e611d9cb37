"""What a service says of itself, over a real channel."""

from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from grpc_reflection.v1alpha import reflection_pb2 as pb
from grpc_reflection.v1alpha import reflection_pb2_grpc
from mediagen.v1 import image_pb2

from server.rpc import reflection

SERVICE = "mediagen.v1.ImageService"


@pytest_asyncio.fixture
async def stub() -> AsyncIterator[reflection_pb2_grpc.ServerReflectionStub]:
    """A server that has nothing but reflection, and a stub to ask it."""
    server = grpc.aio.server()
    reflection.enable((SERVICE,), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield reflection_pb2_grpc.ServerReflectionStub(channel)
    await server.stop(None)


async def _ask(
    stub: reflection_pb2_grpc.ServerReflectionStub, request: pb.ServerReflectionRequest
) -> pb.ServerReflectionResponse:
    call = stub.ServerReflectionInfo(iter([request]), timeout=10)
    reply: pb.ServerReflectionResponse = await anext(aiter(call))
    call.cancel()
    return reply


async def test_the_services_are_listed(stub: reflection_pb2_grpc.ServerReflectionStub) -> None:
    reply = await _ask(stub, pb.ServerReflectionRequest(list_services=""))
    names = [service.name for service in reply.list_services_response.service]
    assert names == ["grpc.reflection.v1alpha.ServerReflection", SERVICE]


@pytest.mark.parametrize("symbol", [SERVICE, f"{SERVICE}.Generate", "mediagen.v1.GenerateRequest"])
async def test_services_methods_and_messages_are_found_in_their_file(
    stub: reflection_pb2_grpc.ServerReflectionStub, symbol: str
) -> None:
    reply = await _ask(stub, pb.ServerReflectionRequest(file_containing_symbol=symbol))
    assert image_pb2.DESCRIPTOR.serialized_pb in reply.file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize("symbol", [f"{SERVICE}.Nothing", "nothing", ""])
async def test_what_is_not_there_is_not_found(stub: reflection_pb2_grpc.ServerReflectionStub, symbol: str) -> None:
    reply = await _ask(stub, pb.ServerReflectionRequest(file_containing_symbol=symbol))
    assert reply.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
