"""The JSON routes: in the test's own loop, held and let go by it; or in a thread, for tools that do not wait."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import grpc
import httpx
import pytest
from assets.conftest import BUDGET, looked_at
from engines.fake import FakeEngines
from json_service import Hollow, Served, hollow_engines, listening, routes
from mediagen.v1 import image_pb2_grpc

from server.admission import Admission
from server.assets.library import Library
from server.assets.uploads import Uploads
from server.catalog import Catalog
from server.http.app import application
from server.http.assets import AssetRoutes
from server.rpc.interceptor import CallInterceptor


@pytest.fixture
async def served(catalog: Catalog, fake_engines: FakeEngines) -> AsyncIterator[Served]:
    """SD 1.5 alone, held and let go by the test; two permits."""
    admission, sd15 = Admission(2), {"sd15": catalog["sd15"]}
    made = routes(sd15, fake_engines, admission)
    transport = httpx.ASGITransport(made.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=30) as client:
        unet = next(spec for spec in catalog["sd15"].specs if spec.name == "sd15_unet")
        yield Served(client, made, fake_engines, made.scheduler, admission, unet)
    await made.facade.close()


@pytest.fixture
async def on_a_port(served: Served) -> AsyncIterator[str]:
    """The same over a wire."""
    async with listening(served.routes.app) as url:
        yield url


@pytest.fixture(scope="module")
def hollow_service(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hollow]:
    """In a thread of its own, for tools that do not wait; with a library that takes anything."""
    library = Library(tmp_path_factory.mktemp("assets"), looked_at, BUDGET)
    uploads = Uploads(library)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    started: list[Hollow] = []
    stop = asyncio.Event()

    async def serve(ready: threading.Event) -> None:
        engines = hollow_engines(catalog)
        await asyncio.gather(*(engines.load(spec.name) for engine in catalog.values() for spec in engine.specs))
        server = grpc.aio.server(interceptors=(CallInterceptor(),))
        port = server.add_insecure_port("127.0.0.1:0")
        made = routes(catalog, engines, Admission(64))
        async with listening(application(made.facade, AssetRoutes(library, uploads))) as url:
            image_pb2_grpc.add_ImageServiceServicer_to_server(made.service, server)
            await server.start()
            started.append(Hollow(url, f"127.0.0.1:{port}"))
            ready.set()
            await stop.wait()
            await server.stop(None)

    ready = threading.Event()
    serving = asyncio.run_coroutine_threadsafe(serve(ready), loop)
    assert ready.wait(30), serving.exception(0)
    yield started[0]
    loop.call_soon_threadsafe(stop.set)
    serving.result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()
    uploads.close()
    library.close()
