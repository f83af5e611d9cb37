"""The routes: from a request to the servicer, and its reply or fault back to HTTP."""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import ParamSpec, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles
from mediagen.v1 import image_pb2 as pb
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http import document
from server.http.body import NotJson, Room, read, refuse_what_is_not_json
from server.http.jobs import Job, Jobs
from server.http.models import ImageGenerationResponse, Poll
from server.http.replies import (
    Answer,
    Refused,
    Wrong,
    of_error,
    of_json,
    of_message,
    of_pictures,
    of_wrongs,
    wrongs_of,
)
from server.http.translate import NO_DEMANDS, Demands, Translated, translate
from server.rpc.errors import fault_of
from server.rpc.image_service import ImageService
from server.rpc.interceptor import request_id

LARGE = 256 * 2**10  # bytes: parsing or writing more takes a thread, about a millisecond
READ_SECONDS = 60.0  # that a caller has for sending its body
_GONE = Answer(499, b"")  # nobody reads it
_JOB = "/v1/requests/{response_id}"

T = TypeVar("T")
Asked = ParamSpec("Asked")


@dataclass(frozen=True)
class Route:
    """An old path, and what it stands for now."""

    path: str
    engine: str
    title: str
    demands: Demands = NO_DEMANDS


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


def _answered(endpoint: Callable[Asked, Awaitable[Response]]) -> Callable[Asked, Awaitable[Response]]:
    """The one place where an error becomes a reply."""

    @wraps(endpoint)
    async def call(*args: Asked.args, **kwargs: Asked.kwargs) -> Response:
        try:
            return await endpoint(*args, **kwargs)
        except Exception as error:
            return _response(_answer(error))

    return call


class Facade:
    """What the routes share."""

    def __init__(self, service: ImageService, engines: Collection[str], serving: Callable[[], Awaitable[bool]]) -> None:
        self._service = service
        self._engines = engines
        self._serving = serving
        self._room = Room()
        self._jobs = Jobs()

    @_answered
    async def generate(self, route: Route, request: Request) -> Response:
        if route.engine not in self._engines:
            message = f"this deployment has no engine {route.engine}; it has {', '.join(sorted(self._engines))}"
            raise Refused(of_message(404, message, "NO_ENGINE"))
        refuse_what_is_not_json(request.headers)
        async with read(request.receive, self._room, READ_SECONDS) as body:
            size = len(body)
            translated = await _aside(size, partial(translate, body, route.engine, route.demands))
            body.clear()
            if translated.wrongs:
                return _response(of_wrongs(await self._all_wrongs(translated)))
            work = partial(self._work, translated.message)
            if request.headers.get("x-octoai-async", "0").strip() != "1":
                return _response(await _unless_gone(request.receive, work()))
            await self._service.check(translated.message)  # what cannot be drawn is told now, not to who asks later
            return self._submitted(request, self._jobs.submit(work, size))

    async def _all_wrongs(self, translated: Translated) -> list[Wrong]:
        """Of the body's form, and of the values that have the right one; a field is told once."""
        told = {wrong.where[0] for wrong in translated.wrongs}
        try:
            await self._service.check(translated.message)
        except Exception as error:
            fault = fault_of(error)
            if fault is None or not (more := wrongs_of(fault)):
                raise
            return [*translated.wrongs, *(wrong for wrong in more if not told.intersection(wrong.where[:1]))]
        return list(translated.wrongs)

    async def _work(self, message: pb.GenerateRequest) -> Answer:
        try:
            reply = await self._service.generate(message)
        except Exception as error:
            return of_error(error)
        return await _aside(sum(len(image.data) for image in reply.images), partial(of_pictures, reply))

    def _submitted(self, request: Request, job: Job) -> Response:
        url = _url(request, job)
        return _response(replace(of_json(202, {"response_id": job.id, "poll_url": url}), headers={"location": url}))

    def _job(self, response_id: str) -> Job:
        job = self._jobs.find(response_id)
        if job is None:
            message = "no such request: never made, deleted, or answered too long ago"
            raise Refused(of_message(404, message, "NO_SUCH_REQUEST"))
        return job

    @_answered
    async def poll(self, request: Request, response_id: str) -> Response:
        return _response(_told(request, self._job(response_id), 200))

    @_answered
    async def fetch(self, request: Request, response_id: str) -> Response:
        job = self._job(response_id)
        return _response(_told(request, job, 202) if job.answer is None else job.answer)

    @_answered
    async def delete(self, response_id: str) -> Response:
        await self._jobs.delete(self._job(response_id))
        return Response(status_code=204)

    @_answered
    async def health(self) -> Response:
        serving = await self._serving()
        return _response(of_json(200 if serving else 503, {"status": "serving" if serving else "not serving"}))

    async def close(self) -> None:
        """Asynchronous requests are given up: nobody could fetch their answers."""
        await self._jobs.close()


class Named:
    """Around every request: its id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Request(scope).headers.get("x-request-id", "")
        request_id.set(given if 0 < len(given) <= 128 and given.isascii() and given.isprintable() else uuid.uuid4().hex)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id.get()
            await send(message)

        await self._app(scope, receive, named)


def application(facade: Facade) -> ASGIApp:
    """Everything that is served, in the facade's name."""
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
    later(_JOB, facade.poll, methods=["GET"], summary="How it is", response_model=Poll, responses=document.UNKNOWN)
    later(
        _JOB,
        facade.delete,
        methods=["DELETE"],
        summary="Stop and forget it",
        status_code=204,
        responses=document.UNKNOWN,
    )
    later(
        f"{_JOB}/response",
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
    content = json.dumps(document.document(app)).encode()

    def openapi() -> Response:
        return _response(Answer(200, content))

    def to_docs() -> Response:
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
    return _response(replace(answer, headers=dict(error.headers or {})))


def _answer(error: Exception) -> Answer:
    match error:
        case Refused():
            return error.answer
        case NotJson():
            return of_wrongs([error.wrong])
        case ConnectionError():
            return _GONE
        case _:
            return of_error(error)


async def _aside(size: int, work: Callable[[], T]) -> T:
    """What is large is done off the event loop."""
    return work() if size < LARGE else await asyncio.to_thread(work)


async def _unless_gone(receive: Receive, work: Coroutine[None, None, Answer]) -> Answer:
    """The work's answer; a caller who leaves ends the work. The body must have been read."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_left(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else _GONE
    finally:
        for either in (task, gone):
            either.cancel()
        await asyncio.wait((task, gone))


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _told(request: Request, job: Job, status: int) -> Answer:
    told: dict[str, object] = {"response_id": job.id, "status": job.state}
    if job.answer is not None:
        told["response_url"] = f"{_url(request, job)}/response"
        if job.answer.status != 200:
            told["error"] = json.loads(job.answer.content)
    return of_json(status, told)


def _url(request: Request, job: Job) -> str:
    """By the name that the caller knows this service by."""
    return f"{str(request.base_url).rstrip('/')}{_JOB.format(response_id=job.id)}"


def _response(answer: Answer) -> Response:
    return Response(answer.content, answer.status, dict(answer.headers), media_type="application/json")
