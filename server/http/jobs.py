"""Requests whose answers are fetched later: a bounded table of work and of finished answers. Knows nothing of pictures.

It lives in memory: a service that stops forgets it.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from server.http.replies import Answer, Refused, of_error, of_message
from server.rpc.interceptor import request_id

log = logging.getLogger(__name__)

KEPT_SECONDS = 3600.0  # of a finished answer, unless younger ones need its room
PATIENCE_SECONDS = 600.0  # that a request waits for a busy service
MAX_JOBS = 256  # waiting, running and finished ones
MAX_UNFINISHED = 64
MAX_BYTES = 256 * 2**20  # of requests and answers
_STOPPED = of_message(503, "the work was stopped; send the request again", "STOPPED", retry_seconds=1.0)


@dataclass(eq=False)
class Job:
    """One request on its way."""

    id: str
    size: int  # bytes: of the request, then of its answer
    state: str = "pending"  # until the service has room for it
    answer: Answer | None = None
    finished: float = 0.0  # monotonic
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Jobs:
    """The table; the oldest finished answers make room."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}  # oldest first

    def submit(self, work: Callable[[], Awaitable[Answer]], size: int) -> Job:
        """Begin `work`, whose request holds `size` bytes. Raises `Refused`: the table is full of unfinished ones."""
        self._forget_old()
        unfinished = [job for job in self._jobs.values() if job.answer is None]
        if len(unfinished) >= MAX_UNFINISHED or sum(job.size for job in unfinished) + size > MAX_BYTES:
            message = f"{len(unfinished)} asynchronous requests are under way, and no more fit; retry in 5 s"
            raise Refused(of_message(429, message, "OVERLOADED", retry_seconds=5.0))
        job = Job(secrets.token_urlsafe(16), size)
        self._jobs[job.id] = job
        self._make_room()
        job.task = asyncio.create_task(self._finish(job, work))
        return job

    def find(self, key: str) -> Job | None:
        """None for one that never was, was deleted, or was finished too long ago."""
        self._forget_old()
        return self._jobs.get(key)

    async def delete(self, job: Job) -> None:
        """Stop its work and forget it."""
        self._jobs.pop(job.id, None)
        if job.task is not None:
            job.task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.shield(job.task)

    async def close(self) -> None:
        """Stop all work: nobody could fetch its answers."""
        await asyncio.gather(*map(self.delete, list(self._jobs.values())))

    async def _finish(self, job: Job, work: Callable[[], Awaitable[Answer]]) -> None:
        """However the work ends, the job does: one without an answer would hold its place for ever."""
        answer = _STOPPED
        try:
            answer = await _until_there_is_room(job, work)
        except Exception as error:
            answer = of_error(error)
        except asyncio.CancelledError:
            if job.id in self._jobs:  # it was not its caller who stopped it
                log.warning("request %s was stopped", request_id.get())
            raise
        finally:
            job.answer, job.size, job.finished = answer, len(answer.content), time.monotonic()
            job.state = "completed" if answer.status == 200 else "failed"
            self._make_room()

    def _forget_old(self) -> None:
        oldest = time.monotonic() - KEPT_SECONDS
        for job in [job for job in self._jobs.values() if job.answer is not None and job.finished < oldest]:
            del self._jobs[job.id]

    def _make_room(self) -> None:
        """The last finished answer stays, however large."""
        finished = sorted((job for job in self._jobs.values() if job.answer is not None), key=lambda job: job.finished)
        held = sum(job.size for job in self._jobs.values())
        for job in finished[:-1]:
            if held <= MAX_BYTES and len(self._jobs) <= MAX_JOBS:
                return
            held -= job.size
            del self._jobs[job.id]


async def _until_there_is_room(job: Job, work: Callable[[], Awaitable[Answer]]) -> Answer:
    """The work's answer, which is tried again while the service is busy."""
    begin = time.monotonic()
    while True:
        job.state = "running"
        answer = await work()
        retry = answer.retry_seconds
        if answer.status != 429 or retry is None or time.monotonic() + retry > begin + PATIENCE_SECONDS:
            return answer
        job.state = "pending"
        await asyncio.sleep(retry)
