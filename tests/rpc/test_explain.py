"""Explain over a real channel: everything about a request, and nothing of it done."""

import grpc
import pytest
from conftest import hold_a_step
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from mediagen.v1 import image_pb2 as pb
from rpc.conftest import Served, status_of

SMALL = pb.GenerateRequest(engine="sd15", prompt="a red house", steps=5, width=384, height=704, num_images=2, seed=4)


def changed(**fields: object) -> pb.GenerateRequest:
    """The small request with other values."""
    request = pb.GenerateRequest()
    request.CopyFrom(SMALL)
    request.MergeFrom(pb.GenerateRequest(**fields))
    return request


async def explained(served: Served, request: pb.GenerateRequest) -> pb.ExplainResponse:
    return await served.stub.Explain(pb.ExplainRequest(request=request))


async def test_a_request_is_told_as_it_would_run_and_nothing_runs(served: Served) -> None:
    reply = await explained(served, SMALL)
    assert served.engines.calls == []
    assert (reply.effective.steps, reply.effective.cfg_scale) == (5, 12)
    assert list(reply.effective.seeds) == [4, 5]
    assert dict(reply.executions) == {"sd15_text_encoder": 1, "sd15_unet": 10, "sd15_vae_decoder": 2}
    assert list(reply.effective.models) == list(reply.unmeasured) == sorted(reply.executions)
    assert not reply.HasField("estimated_ms"), "nothing has run yet"
    assert reply.nearest_size == pb.Size(width=384, height=704)
    assert not reply.violations


async def test_after_a_picture_the_time_is_known_for_every_size(served: Served) -> None:
    await served.stub.Generate(SMALL)
    for request in (SMALL, changed(width=512, height=512, num_images=16)):
        told = await explained(served, request)
        assert not told.unmeasured
        assert told.estimated_ms > 0


async def test_every_permit_may_be_taken(served: Served) -> None:
    calls = [served.stub.Generate(changed(steps=200)) for _ in range(2)]
    await hold_a_step(served.engines, served.unet)
    assert served.admission.inside == 2
    assert (await explained(served, SMALL)).HasField("effective")
    served.engines.go.set()
    for call in calls:
        call.cancel()


async def test_what_is_wrong_is_a_reply_and_not_an_error(served: Served) -> None:
    reply = await explained(served, changed(steps=201, width=500, height=510, prompt="a gun"))
    assert not reply.HasField("effective")
    assert not reply.executions
    assert not reply.HasField("estimated_ms")
    assert reply.nearest_size == pb.Size(width=512, height=512)
    assert [violation.field for violation in reply.violations] == ["width", "height", "steps", "prompt"]
    assert "gun" not in reply.violations[-1].description


@pytest.mark.parametrize(
    "request_message",
    [pb.GenerateRequest(), changed(engine="nothing"), changed(width=0), changed(prompt="gun " * 5000)],
    ids=["empty", "unknown engine", "no width", "overlong"],
)
async def test_a_request_that_means_nothing_is_answered_too(
    served: Served, request_message: pb.GenerateRequest
) -> None:
    reply = await explained(served, request_message)
    fields = [violation.field for violation in reply.violations]
    assert len(fields) == len(set(fields)) > 0
    if request_message.engine != "sd15":
        assert "engine" in fields
        assert not reply.HasField("nearest_size")


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_a_blocked_prompt_is_refused_by_its_field_and_without_the_word(served: Served, method: str) -> None:
    request = changed(prompt="a (GU:1.2)N, red", negative_prompt="gun")
    streamed = method == "GenerateStream"
    call = (
        served.stub.GenerateStream(pb.GenerateStreamRequest(request=request))
        if streamed
        else served.stub.Generate(request)
    )
    assert await status_of(call) == grpc.StatusCode.INVALID_ARGUMENT
    details = (await call.details()).lower()
    assert details.startswith("request.prompt: " if streamed else "prompt: ")
    assert "gun" not in details
    trailers = {key: value for key, value in await call.trailing_metadata()}
    status = rpc_status.status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad_request)
    assert info.reason == "PROMPT_BLOCKED"
    assert [v.field for v in bad_request.field_violations] == ["request.prompt" if streamed else "prompt"]
    assert served.engines.calls == []


async def test_what_must_not_be_seen_may_be_named_in_the_negative_prompt(served: Served) -> None:
    assert len((await served.stub.Generate(changed(negative_prompt="gun", num_images=1))).images) == 1
