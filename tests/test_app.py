"""Health says what the engines' state is, and goes on saying it."""

import asyncio

from engines import toy
from engines.fake import FakeEngines
from grpc_health.v1 import health, health_pb2

from server.app import _set_health, _watch_health


class Unknowable(FakeEngines):
    """Raises when it is first asked what is ready."""

    asked = 0

    async def ready(self) -> tuple[str, ...]:
        self.asked += 1
        if self.asked == 1:
            raise OSError("a bug")
        return tuple(await super().ready())


async def test_health_is_watched_on_after_an_error() -> None:
    engines = Unknowable((toy.WORDS,), {toy.WORDS.name: toy.words})
    await engines.load(toy.WORDS.name)
    status = health.aio.HealthServicer()
    await _set_health(status, serving=False)
    watcher = asyncio.create_task(_watch_health(status, engines, frozenset({toy.WORDS.name})))
    async with asyncio.timeout(10):
        while (await status.Check(health_pb2.HealthCheckRequest(), None)).status != SERVING:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    assert engines.asked == 2


SERVING = health_pb2.HealthCheckResponse.SERVING
