"""The routes: paths, what each stands for, and what the document says of it."""

import json
import uuid
from dataclasses import replace
from functools import partial
from typing import Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http import document
from server.http.facade import JOB, Facade, Route, response
from server.http.models import ImageGenerationResponse, Poll
from server.http.replies import Answer, of_message, of_places
from server.http.translate import Demands
from server.rpc.interceptor import TENANT, request_id, set_tenant
from server.violations import InvalidRequest

_CONTROL = Demands(required=frozenset({"controlnet", "controlnet_image"}))
_IP_ADAPTER = Demands(required=frozenset({"ip_adapter_image"}), refused=frozenset({"controlnet", "controlnet_image"}))
ROUTES = (
    Route("/generate/sd", "sd15", "Pictures by Stable Diffusion 1.5"),
    Route("/generate/sdxl", "sdxl", "Pictures by SDXL"),
    Route("/generate/ssd", "ssd", "Pictures by SSD-1B"),
    Route("/generate/sd3", "sd3", "Pictures by Stable Diffusion 3"),
    Route("/generate/controlnet-sd15", "sd15", "Stable Diffusion 1.5 guided by a ControlNet", _CONTROL),
    Route("/generate/controlnet-sdxl", "sdxl", "SDXL guided by a ControlNet", _CONTROL),
    Route("/generate/ip-adapter-sdxl", "sdxl", "SDXL guided by a picture", _IP_ADAPTER),
)


class Named:
    """Around every request: its id, and whose it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Request(scope).headers.get("x-request-id", "")
        request_id.set(given if 0 < len(given) <= 128 and given.isascii() and given.isprintable() else uuid.uuid4().hex)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id.get()
            await send(message)

        try:
            set_tenant(Request(scope).headers.get(TENANT))
        except InvalidRequest as invalid:
            await response(of_places("header", invalid.violations))(scope, receive, named)
            return
        await self._app(scope, receive, named)


class Others(Protocol):
    """Routes beside those of the pictures."""

    def add(self, app: FastAPI) -> None:
        """With what the document says of them."""


def application(facade: Facade, *others: Others) -> ASGIApp:
    """Everything that is served: the facade's, and what others add."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    for route in ROUTES:
        app.add_api_route(
            route.path,
            partial(facade.generate, route),
            methods=["POST"],
            tags=["pictures"],
            summary=route.title,
            operation_id=f"generate_{route.path.rpartition('/')[2].replace('-', '_')}",
            response_model=ImageGenerationResponse,
            responses=document.RESPONSES,
            openapi_extra=document.REQUEST,
        )
    later = partial(app.add_api_route, tags=["asynchronous requests"])
    later(JOB, facade.poll, methods=["GET"], summary="How it is", response_model=Poll, responses=document.UNKNOWN)
    later(
        JOB,
        facade.delete,
        methods=["DELETE"],
        summary="Stop and forget it",
        status_code=204,
        responses=document.UNKNOWN,
    )
    later(
        f"{JOB}/response",
        facade.fetch,
        methods=["GET"],
        summary="Its answer",
        response_model=ImageGenerationResponse,
        responses=document.FETCHED,
    )
    app.add_api_route(
        "/healthz",
        facade.health,
        methods=["GET"],
        tags=["health"],
        summary="Whether it serves",
        responses=document.HEALTH,
    )
    for other in others:
        other.add(app)
    content = json.dumps(document.document(app)).encode()

    async def openapi() -> Response:
        return response(Answer(200, content))

    async def to_docs() -> Response:
        return RedirectResponse("docs")

    app.add_api_route("/openapi.json", openapi, methods=["GET"], include_in_schema=False)
    app.add_api_route("/docs", document.page, methods=["GET"], include_in_schema=False)
    app.add_api_route("/", to_docs, methods=["GET"], include_in_schema=False)
    app.mount("/docs", StaticFiles(directory=document.assets()))
    app.add_exception_handler(HTTPException, _no_route)
    return Named(app)


async def _no_route(request: Request, error: Exception) -> Response:
    """No such path, or not by this method; the framework's own words are told our way."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:200]}: {error.detail}; GET /docs shows what there is"
    answer = of_message(error.status_code, message, "NO_SUCH_ROUTE")
    return response(replace(answer, headers=dict(error.headers or {})))
