"""Engines that compute nothing, and the JSON routes over them, on a real port. (`http` is a name that belongs to
Python's own library: what those tests share is here.)"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import numpy as np
from engines.fake import FakeEngines
from starlette.types import ASGIApp

from server.admission import Admission
from server.catalog import Catalog, Engine
from server.engines.port import Array, Spec, Tensors
from server.http.app import application
from server.http.facade import Facade
from server.http.listener import Listener, listen
from server.prompt_filter import WordList
from server.rpc.image_service import ImageService
from server.scheduler import StepScheduler
from server.variants import pristine


def hollow(spec: Spec, pixels_per_latent: int, inputs: Tensors) -> dict[str, Array]:
    """What an engine of this spec gives, all zero."""
    axes = {
        name: length
        for port in spec.inputs
        for name, length in zip(port.shape, inputs[port.name].shape, strict=True)
        if isinstance(name, str)
    }
    for side in ("height", "width"):
        if side in axes:
            axes[f"picture_{side}"] = axes[side] * pixels_per_latent
        elif f"picture_{side}" in axes:
            axes[side] = axes[f"picture_{side}"] // pixels_per_latent
    return {
        port.name: np.zeros([axes[axis] if isinstance(axis, str) else axis for axis in port.shape], port.dtype)
        for port in spec.outputs
    }


def hollow_engines(catalog: Catalog) -> FakeEngines:
    """Every engine of the catalog."""

    def compute(engine: Engine, spec: Spec):  # type: ignore[no-untyped-def]
        return lambda inputs: hollow(spec, engine.card.pixels_per_latent, inputs)

    specs = {spec.name: (engine, spec) for engine in catalog.values() for spec in engine.specs}
    return FakeEngines(
        [spec for _, spec in specs.values()], {name: compute(engine, spec) for name, (engine, spec) in specs.items()}
    )


@dataclass(frozen=True)
class Routes:
    """The application and what is behind it."""

    app: ASGIApp
    facade: Facade
    service: ImageService
    scheduler: StepScheduler
    health: list[bool]  # its only item: whether the engines answer


def routes(catalog: Catalog, engines: FakeEngines, admission: Admission) -> Routes:
    """The prompt filter has one word."""
    scheduler = StepScheduler(engines)
    service = ImageService(catalog, pristine(scheduler.run), admission, WordList("gun"), scheduler.meter.seconds)
    health = [True]

    async def serving() -> bool:
        return health[0]

    facade = Facade(service, catalog.keys(), serving)
    return Routes(application(facade), facade, service, scheduler, health)


@asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[str]:
    """The URL of an application on a free port."""
    own = listen("127.0.0.1:0")
    listener = Listener(app, own, grace_seconds=5)
    try:
        yield f"http://127.0.0.1:{own.getsockname()[1]}"
    finally:
        await listener.stop()


@dataclass(frozen=True)
class Served:
    """The routes, called without a wire."""

    http: httpx.AsyncClient
    routes: Routes
    engines: FakeEngines
    scheduler: StepScheduler
    admission: Admission
    unet: Spec


@dataclass(frozen=True)
class Hollow:
    """All default engines' requests, without their work, over both interfaces."""

    url: str
    grpc_address: str
