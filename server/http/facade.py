"""From a request to the servicer, and its reply or fault back to HTTP. Knows one path: where to ask for an answer."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import ParamSpec, TypeVar

import numpy as np
from fastapi import Request, Response
from mediagen.v1 import image_pb2 as pb
from starlette.types import Receive

from server.http.body import Left, NotJson, Room, read, refuse_what_is_not_json
from server.http.jobs import Job, Jobs
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
from server.plan import Plan
from server.prompt_filter import REFUSAL, PromptBlocked
from server.rpc.errors import fault_of
from server.rpc.image_service import ImageService
from server.violations import InvalidRequest, Violation

LARGE = 16 * 2**10  # bytes: reading or writing more takes a thread; the worst of this size takes milliseconds
PLAN_BYTES = 2**20  # that a plan without pictures and vectors holds at most: its texts, as they were sent and as tokens
READ_SECONDS = 60.0  # that a caller has for sending its body
_GONE = Answer(499, b"")  # nobody reads it
_STOPPING = of_message(503, "this service stops; send the request again", "STOPPING", retry_seconds=1.0)
JOB = "/v1/requests/{response_id}"

T = TypeVar("T")
Asked = ParamSpec("Asked")


@dataclass(frozen=True)
class Route:
    """An old path, and what it stands for now."""

    path: str
    engine: str
    title: str
    demands: Demands = NO_DEMANDS


def answered(endpoint: Callable[Asked, Awaitable[Response]]) -> Callable[Asked, Awaitable[Response]]:
    """The one place where an error becomes a reply."""

    @wraps(endpoint)
    async def call(*args: Asked.args, **kwargs: Asked.kwargs) -> Response:
        try:
            return await endpoint(*args, **kwargs)
        except asyncio.CancelledError:  # by the listener, whose grace time is over
            return response(_STOPPING)
        except Exception as error:
            return response(_answer(error))

    return call


class Facade:
    """What the routes share."""

    def __init__(self, service: ImageService, engines: Collection[str], serving: Callable[[], Awaitable[bool]]) -> None:
        self._service = service
        self._engines = engines
        self._serving = serving
        self._room = Room()
        self._jobs = Jobs()

    @answered
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
                return response(of_wrongs(await self._all_wrongs(translated)))
            if request.headers.get("x-octoai-async", "0").strip() != "1":
                work = self._work(partial(self._service.generate, translated.message))
                return response(await _unless_gone(request.receive, work))
            what = await self._service.check(translated.message)  # what cannot be drawn is told now, not who asks later
            draw = partial(self._work, partial(self._service.draw, what))
            return self._submitted(request, self._jobs.submit(draw, _held(what)))

    async def _all_wrongs(self, translated: Translated) -> list[Wrong]:
        """Of the body's form, and of the values that have the right one; a field is told once."""
        told = {wrong.where[0] for wrong in translated.wrongs}
        try:
            await self._service.check(translated.message)
        except InvalidRequest as invalid:
            return [*translated.wrongs, *wrongs_of(invalid.violations, told)]
        except PromptBlocked as blocked:
            return [*translated.wrongs, *wrongs_of([Violation(field, REFUSAL) for field in blocked.fields], told)]
        except Exception as error:
            if fault_of(error) is None:
                raise
        return list(translated.wrongs)

    async def _work(self, draw: Callable[[], Awaitable[pb.GenerateResponse]]) -> Answer:
        try:
            reply = await draw()
        except Exception as error:
            return of_error(error)
        return await _aside(sum(len(image.data) for image in reply.images), partial(of_pictures, reply))

    def _submitted(self, request: Request, job: Job) -> Response:
        url = _url(request, job)
        return response(replace(of_json(202, {"response_id": job.id, "poll_url": url}), headers={"location": url}))

    def _job(self, response_id: str) -> Job:
        job = self._jobs.find(response_id)
        if job is None:
            message = "no such request: never made, deleted, or answered too long or too many answers ago"
            raise Refused(of_message(404, message, "NO_SUCH_REQUEST"))
        return job

    @answered
    async def poll(self, request: Request, response_id: str) -> Response:
        return response(_told(request, self._job(response_id), 200))

    @answered
    async def fetch(self, request: Request, response_id: str) -> Response:
        job = self._job(response_id)
        return response(_told(request, job, 202) if job.answer is None else job.answer)

    @answered
    async def delete(self, response_id: str) -> Response:
        await self._jobs.delete(self._job(response_id))
        return Response(status_code=204)

    @answered
    async def health(self) -> Response:
        serving = await self._serving()
        return response(of_json(200 if serving else 503, {"status": "serving" if serving else "not serving"}))

    async def close(self) -> None:
        """Asynchronous requests are given up: nobody could fetch their answers."""
        await self._jobs.close()


def _answer(error: Exception) -> Answer:
    match error:
        case Refused():
            return error.answer
        case NotJson():
            return of_wrongs([error.wrong])
        case Left():
            return _GONE
        case _:
            return of_error(error)


def _held(what: Plan) -> int:
    """At most so many bytes of a plan wait: its texts, and the pictures, masks and vectors that it was given."""
    given = (what.start, what.control, what.image_prompt, *what.transfers)
    values = (*what.vectors.values(), *(value for each in given for value in vars(each).values()))
    arrays = {id(value): value for value in values if isinstance(value, np.ndarray)}  # one mask may stand twice
    return PLAN_BYTES + sum(array.nbytes for array in arrays.values())


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
    return f"{str(request.base_url).rstrip('/')}{JOB.format(response_id=job.id)}"


def response(answer: Answer) -> Response:
    """For the framework."""
    return Response(answer.content, answer.status, dict(answer.headers), media_type="application/json")
