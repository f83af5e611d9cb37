"""ImageService behind the interceptor on a real port, over engines that a test holds and lets go."""

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

import grpc
import pytest
from engines.fake import FakeEngines
from mediagen.v1 import image_pb2_grpc

from server.admission import Admission
from server.catalog import Catalog
from server.engines.port import Spec
from server.prompt_filter import WordList
from server.rpc.image_service import ImageService
from server.rpc.interceptor import CallInterceptor
from server.scheduler import StepScheduler
from server.variants import pristine


async def status_of(call: grpc.aio.UnaryUnaryCall | grpc.aio.UnaryStreamCall) -> grpc.StatusCode:
    """How a call ends; a stream tells only after it has been read."""
    if isinstance(call, grpc.aio.UnaryStreamCall):
        with suppress(grpc.RpcError):
            async for _ in call:
                pass
    return await call.code()


@dataclass(frozen=True)
class Served:
    """The service and what is behind it."""

    stub: image_pb2_grpc.ImageServiceStub
    service: ImageService
    engines: FakeEngines
    scheduler: StepScheduler
    admission: Admission
    unet: Spec


@pytest.fixture
def permits() -> int:
    """To draw."""
    return 2


@pytest.fixture
async def served(catalog: Catalog, fake_engines: FakeEngines, permits: int) -> AsyncIterator[Served]:
    """Few permits, and a filter with one word."""
    scheduler, admission = StepScheduler(fake_engines), Admission(permits)
    server = grpc.aio.server(interceptors=(CallInterceptor(),))
    service = ImageService(catalog, pristine(scheduler.run), admission, WordList("gun"), scheduler.meter.seconds)
    image_pb2_grpc.add_ImageServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        unet = next(spec for spec in catalog["sd15"].specs if spec.name == "sd15_unet")
        yield Served(stub, service, fake_engines, scheduler, admission, unet)
    await server.stop(None)
    service.close()
