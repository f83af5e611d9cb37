"""A call that is given up costs no further step, and its permit is free at once: over a real channel."""

import asyncio

import grpc
import pytest
from conftest import HANG_SECONDS, hold_a_step, steps_after_release
from mediagen.v1 import image_pb2 as pb
from rpc.conftest import Served, status_of

from server.admission import Admission, Overloaded
from server.engines.port import EngineUnavailable
from server.rpc.interceptor import request_id

LONG = pb.GenerateRequest(engine="sd15", prompt="a red house", steps=200, width=384, height=704)
SHORT = pb.GenerateRequest(engine="sd15", prompt="a red house", steps=1, width=384, height=704)
DEADLINE_SECONDS = 1.5  # enough for a step to begin: engines that compute nothing take milliseconds


async def free(admission: Admission) -> None:
    """Returns when nobody is inside."""
    async with asyncio.timeout(HANG_SECONDS):
        while admission.inside > 0:  # noqa: ASYNC110  # that a caller has left comes over a socket, as no event of ours
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_a_cancelled_call_begins_no_further_step(served: Served, method: str) -> None:
    call = (
        served.stub.Generate(LONG)
        if method == "Generate"
        else served.stub.GenerateStream(pb.GenerateStreamRequest(request=LONG))
    )
    await hold_a_step(served.engines, served.unet)
    assert served.admission.inside == 1
    call.cancel()
    await free(served.admission)  # while the engine is still at it
    assert await steps_after_release(served.engines, served.scheduler, served.unet) == 0


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_a_call_past_its_deadline_begins_no_further_step(served: Served, method: str) -> None:
    call = (
        served.stub.Generate(LONG, timeout=DEADLINE_SECONDS)
        if method == "Generate"
        else served.stub.GenerateStream(pb.GenerateStreamRequest(request=LONG), timeout=DEADLINE_SECONDS)
    )
    await hold_a_step(served.engines, served.unet)
    assert served.admission.inside == 1
    assert await status_of(call) == grpc.StatusCode.DEADLINE_EXCEEDED
    await free(served.admission)
    assert await steps_after_release(served.engines, served.scheduler, served.unet) == 0


async def test_a_failed_call_gives_its_permit_back(served: Served) -> None:
    served.engines.fail(served.unet.name, EngineUnavailable("gone"))
    call = served.stub.Generate(SHORT)
    assert await status_of(call) == grpc.StatusCode.UNAVAILABLE
    assert await call.details() == "gone"
    assert served.admission.inside == 0


async def test_one_call_more_than_permits_is_refused_and_the_others_go_on(served: Served) -> None:
    inside = [served.stub.Generate(LONG) for _ in range(2)]
    await hold_a_step(served.engines, served.unet)
    assert await status_of(served.stub.Generate(SHORT)) == grpc.StatusCode.RESOURCE_EXHAUSTED
    served.engines.go.set()
    assert [len((await call).images) for call in inside] == [1, 1]
    assert served.admission.inside == 0


async def test_the_time_before_admission_is_told_apart(served: Served) -> None:
    timings = (await served.stub.Generate(SHORT)).timings
    async for event in served.stub.GenerateStream(pb.GenerateStreamRequest(request=SHORT)):
        last = event
    for told in (timings, last.summary.timings):
        phases = [told.queue_ms, told.conditioning_ms, told.denoising_ms, told.decoding_ms, told.encoding_ms]
        assert all(phase > 0 for phase in phases)
        assert sum(phases) <= told.total_ms


async def test_a_checked_plan_is_drawn_once_there_is_room_as_the_request_would_be(served: Served) -> None:
    request_id.set("a caller within the process")
    request = pb.GenerateRequest(seed=7)
    request.MergeFrom(SHORT)
    what = await served.service.check(request)
    assert served.admission.inside == 0
    inside = [served.stub.Generate(LONG) for _ in range(2)]
    while served.admission.inside < 2:  # noqa: ASYNC110  (a permit is no event)
        await asyncio.sleep(0.01)
    await hold_a_step(served.engines, served.unet)
    with pytest.raises(Overloaded):
        await served.service.draw(what)
    served.engines.go.set()
    for call in inside:
        await call
    drawn = [await served.service.draw(what), await served.service.draw(what), await served.service.generate(request)]
    assert len({tuple(image.data for image in reply.images) for reply in drawn}) == 1
    assert drawn[0].effective == drawn[2].effective
    assert served.admission.inside == 0
