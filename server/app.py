"""Composition root: from settings to a running service, and back down without losing a request.

The only file that knows every part; the parts do not know it.
"""

import asyncio
import hashlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from mediagen.v1 import asset_pb2_grpc, engine_pb2_grpc, image_pb2_grpc

from server.admission import Admission
from server.assets.opened import Looking, opened
from server.builder.client import Builder, Command, EmbeddedBuilder
from server.builder.inspection import inspect, kind, read_shapes
from server.builder.shapes import Shapes
from server.catalog import Catalog, read_catalog
from server.engines import memory
from server.engines.kept import KeptEngines
from server.engines.on_demand import OnDemandEngines
from server.engines.port import Engines, EngineUnavailable, Spec
from server.engines.supervisor import EmbeddedTriton
from server.engines.triton import TritonEngines
from server.http.app import application
from server.http.assets import AssetRoutes
from server.http.facade import Facade
from server.http.listener import Listener, listen
from server.prompt_filter import nothing_blocked, read_word_list
from server.rpc.asset_service import AssetService
from server.rpc.engine_service import EngineService
from server.rpc.image_service import ImageService
from server.rpc.interceptor import CallInterceptor, tenant
from server.rpc.reflection import enable as enable_reflection
from server.scheduler import ROW_SECONDS, StepScheduler
from server.settings import EMBEDDED, NONE, Settings
from server.variants import Variants

log = logging.getLogger(__name__)

MESSAGE_BYTES = 128 * 2**20  # sixteen PNG files of 1536x1024 in one reply
HEALTH_SECONDS = 0.5  # between looks at the engines
SERVICES = ("mediagen.v1.ImageService", "mediagen.v1.EngineService", "mediagen.v1.AssetService")


class AddressTaken(Exception):
    """The service cannot listen where it was told to."""

    def __init__(self, address: str, setting: str, off: str = "") -> None:
        super().__init__(
            f"cannot listen on {address}: another program holds the port, or the host is not this machine's; "
            f"set {setting} to another host:port{off}"
        )


@dataclass(frozen=True)
class Ports:
    """Where the service listens."""

    grpc: int
    http: int | None  # None: it does not


@asynccontextmanager
async def service(settings: Settings) -> AsyncIterator[Ports]:
    """The running service; yields its ports. Leaving it refuses new calls, lets the running ones end within the grace
    time, and stops everything that was started.

    Raises `ValueError` for a model repository that is none and for a setting that cannot be, `AddressTaken`,
    `TritonStartError`, `EngineFault`.
    """
    prompt_filter = nothing_blocked if settings.prompt_filter is None else read_word_list(settings.prompt_filter)
    catalog = read_catalog(settings.model_repository, settings.safety)
    specs = [spec for engine in catalog.values() for spec in engine.specs]
    sizes = {spec.name: memory.estimate(settings.model_repository, spec.name) for spec in specs}
    preload = _preload(settings, catalog, sizes)
    _warn_of_little_room(settings, catalog, sizes)
    _warn_of_open_doors(settings)
    async with AsyncExitStack() as stack:
        status = health.aio.HealthServicer()
        await _set_health(status, serving=False)
        server = grpc.aio.server(
            interceptors=(CallInterceptor(),),
            options=(
                ("grpc.max_send_message_length", MESSAGE_BYTES),
                ("grpc.max_receive_message_length", MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),  # a taken port is an error, not a second listener
            ),
        )
        port = _listen(server, settings.grpc_address)
        json_socket = None if settings.http_address == NONE else _listen_http(settings.http_address)
        if json_socket is not None:
            stack.callback(json_socket.close)  # where the start fails
        looking = _looking(read_shapes(settings.model_repository, [engine.card for engine in catalog.values()]))
        own = settings.model_repository / "assets"
        assets = await stack.enter_async_context(opened(settings.assets, settings.asset_disk, own, looking))
        _make_folder(settings.variants)
        builder = await stack.enter_async_context(_builder(settings))
        home = _HOMES.get(settings.triton, _remote)
        triton = await stack.enter_async_context(home(settings, specs))
        if not await triton.answers():
            raise EngineUnavailable(
                f"no Triton answers at {settings.triton}: start it first, or correct MEDIAGEN_TRITON"
            )
        kept = KeptEngines(triton, settings.model_repository, specs)
        engines = OnDemandEngines(kept, sizes, settings.engine_memory)
        stack.push_async_callback(engines.close)
        await asyncio.gather(*map(engines.load, preload))
        scheduler = StepScheduler(engines, _row_seconds(catalog, sizes))
        variants = Variants(engines, builder.ensure, settings.variants, scheduler.run_as)
        stack.push_async_callback(variants.close)
        image_service = ImageService(
            *(catalog, variants.held, Admission(settings.max_requests), prompt_filter, scheduler.meter.seconds),
            shelf=lambda: assets.library.shelf(tenant.get()),
            absent=variants.absent,
        )
        stack.callback(image_service.close)
        image_pb2_grpc.add_ImageServiceServicer_to_server(image_service, server)
        engine_pb2_grpc.add_EngineServiceServicer_to_server(EngineService(catalog, engines.conditions), server)
        asset_pb2_grpc.add_AssetServiceServicer_to_server(AssetService(assets.library, assets.uploads), server)
        health_pb2_grpc.add_HealthServicer_to_server(status, server)
        enable_reflection((*SERVICES, health.SERVICE_NAME), server)
        await server.start()
        drains: list[Callable[[], Awaitable[None]]] = [partial(server.stop, settings.grace_seconds)]
        if json_socket is not None:
            facade = Facade(image_service, catalog.keys(), partial(_serves, status))
            listener = Listener(
                application(facade, AssetRoutes(assets.library, assets.uploads)), json_socket, settings.grace_seconds
            )
            drains += [facade.close, listener.stop]
        stack.push_async_callback(_all, drains)
        watcher = asyncio.create_task(_watch_health(status, engines.healthy))
        stack.push_async_callback(_drain, status, watcher)
        yield Ports(port, None if json_socket is None else json_socket.getsockname()[1])


def _looking(shapes: Shapes) -> Looking:
    """What assets are for is told by the shapes of the engines' tensors."""
    told = [(name, engine.family, sorted(engine.components.items())) for name, engine in sorted(shapes.items())]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return Looking(lambda path, type: inspect(path, type, shapes), kind, digest)


def _preload(settings: Settings, catalog: Catalog, sizes: Mapping[str, int]) -> Sequence[str]:
    """The networks that are loaded before anybody asks for them."""
    unknown = [name for name in settings.preload if name not in catalog]
    if unknown:
        raise ValueError(f"MEDIAGEN_PRELOAD names {', '.join(unknown)}; this repository has {', '.join(catalog)}")
    networks = [spec.name for name in settings.preload for spec in catalog[name].specs]
    needed = sum(sizes[network] for network in networks)
    if needed > settings.engine_memory:
        raise ValueError(
            f"MEDIAGEN_PRELOAD asks for {memory.gibibytes(needed)} of engines and MEDIAGEN_ENGINE_MEMORY allows "
            f"{memory.gibibytes(settings.engine_memory)}: preload fewer, or allow more"
        )
    return networks


def _warn_of_little_room(settings: Settings, catalog: Catalog, sizes: Mapping[str, int]) -> None:
    """Such an engine draws one picture after the other; beside other requests its networks never become idle."""
    for name, engine in catalog.items():
        needed = sum(sizes[spec.name] for spec in engine.specs)
        if needed > settings.engine_memory:
            log.warning(
                "the networks of %s take %s and MEDIAGEN_ENGINE_MEMORY allows %s: they make room for each other within "
                "every picture, and requests at the same time may be refused; allow more, or MEDIAGEN_MAX_REQUESTS=1",
                *(name, memory.gibibytes(needed), memory.gibibytes(settings.engine_memory)),
            )


def _warn_of_open_doors(settings: Settings) -> None:
    """There are no keys in this version."""
    for address in (settings.grpc_address, settings.http_address):
        if address != NONE and not _is_loopback(address):
            log.warning(
                "%s is open to other machines, and this version asks nobody for a key: whoever reaches it may draw; "
                "listen on 127.0.0.1, or put what asks for keys in front",
                address,
            )


def _is_loopback(address: str) -> bool:
    """Whether only this machine reaches host:port; a name that nobody knows is no reason to be calm."""
    try:
        found = socket.getaddrinfo(address.rpartition(":")[0].strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ip_address(where[0]).is_loopback for *_, where in found)


def _row_seconds(catalog: Catalog, sizes: Mapping[str, int]) -> Callable[[str], float]:
    """What each network may take for a row before it counts as hanging: more by a minute for each GiB of its engine.

    By the whole engine, since a decoder has few parameters and much to do: SDXL's 10 Tflop for 1024x1024, by torch's
    counter, its UNet 7 Tflop a row. Two cores need minutes for that.
    """
    seconds: dict[str, float] = {}
    for engine in catalog.values():
        of_each = ROW_SECONDS * (1 + sum(sizes[spec.name] for spec in engine.specs) / 2**30)
        for spec in (*engine.specs, *engine.templates):  # engines may share one, such as what makes control maps
            seconds[spec.name] = max(of_each, seconds.get(spec.name, 0.0))
    return seconds.__getitem__


def _make_folder(variants: Path) -> None:
    """Triton must find it at its start."""
    try:
        variants.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"MEDIAGEN_VARIANTS is {variants}, which cannot be made: {error.strerror}") from error


def _listen(server: grpc.aio.Server, address: str) -> int:
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise AddressTaken(address, "MEDIAGEN_GRPC_ADDRESS") from error


def _listen_http(address: str) -> socket.socket:
    try:
        return listen(address)
    except OSError as error:
        raise AddressTaken(address, "MEDIAGEN_HTTP_ADDRESS", f", or to {NONE!r} for no JSON routes") from error


async def _all(tasks: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """At the same time, so that one grace time counts for all."""
    await asyncio.gather(*(task() for task in tasks))


@asynccontextmanager
async def _embedded(settings: Settings, specs: Sequence[Spec]) -> AsyncIterator[Engines]:
    """A Triton of our own, started, watched and stopped here."""
    async with EmbeddedTriton(
        settings.model_repository, settings.cache / "triton", variants=settings.variants
    ) as triton:
        yield TritonEngines(triton.address, specs)


@asynccontextmanager
async def _in_process(settings: Settings, specs: Sequence[Spec]) -> AsyncIterator[Engines]:
    """Engines in this process, for platforms without the Triton wheel."""
    from server.engines.local import LocalEngines  # brings OpenVINO, 60 MB, which a gateway beside a Triton needs not

    yield LocalEngines(settings.model_repository, specs, cache=settings.cache / "openvino")


@asynccontextmanager
async def _remote(settings: Settings, specs: Sequence[Spec]) -> AsyncIterator[Engines]:
    """A Triton that somebody else runs, over the same model repository."""
    yield TritonEngines(settings.triton, specs)


@asynccontextmanager
async def _builder(settings: Settings) -> AsyncIterator[Builder]:
    """Who writes variants. It need not be there: only requests that want one need it, and they are told."""
    async with AsyncExitStack() as stack:
        address = settings.builder
        if address == EMBEDDED:
            command = Command(settings.model_repository, settings.assets, settings.variants, settings.variant_disk)
            address = (await stack.enter_async_context(EmbeddedBuilder(command, settings.cache))).address
        builder = Builder(address)
        stack.push_async_callback(builder.close)
        yield builder


_Home = Callable[[Settings, Sequence[Spec]], AbstractAsyncContextManager[Engines]]
_HOMES: Mapping[str, _Home] = {EMBEDDED: _embedded, NONE: _in_process}


async def _watch_health(status: health.aio.HealthServicer, healthy: Callable[[], Awaitable[bool]]) -> None:
    serving = False
    while True:
        try:
            now = await healthy()
            if now != serving:
                await _set_health(status, serving=now)
                serving = now
                log.log(
                    logging.INFO if serving else logging.ERROR,
                    "serving" if serving else "not serving: engines are away",
                )
        except Exception:  # health that nobody watches any more would stay as it was for ever
            log.exception("the engines' state is not known")
        await asyncio.sleep(HEALTH_SECONDS)


async def _drain(status: health.aio.HealthServicer, watcher: asyncio.Task[None]) -> None:
    """Load balancers hear first that this service goes away."""
    watcher.cancel()
    with suppress(asyncio.CancelledError):
        await watcher
    await status.enter_graceful_shutdown()
    log.info("draining: running calls may end, new ones are refused")


async def _serves(status: health.aio.HealthServicer) -> bool:
    """What load balancers hear over gRPC, for those that ask over HTTP."""
    nobody = cast(Any, None)  # a call's context, which is not looked at
    told = await status.Check(health_pb2.HealthCheckRequest(), nobody)
    return bool(told.status == health_pb2.HealthCheckResponse.SERVING)


async def _set_health(status: health.aio.HealthServicer, *, serving: bool) -> None:
    response = health_pb2.HealthCheckResponse
    for name in ("", *SERVICES):
        await status.set(name, response.SERVING if serving else response.NOT_SERVING)
