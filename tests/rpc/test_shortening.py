"""However much is wrong, a caller can read it: gRPC's trailers take little, and what does not fit is counted."""

import asyncio
import math
from collections.abc import AsyncIterator

import grpc
import pytest
from conftest import HANG_SECONDS
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from mediagen.v1 import image_pb2 as pb
from mediagen.v1 import image_pb2_grpc

from server.admission import Admission
from server.catalog import Catalog
from server.engines.port import Array, EngineUnavailable, Spec, Tensors
from server.prompt_filter import WordList
from server.rpc.errors import fault_of, trailers
from server.rpc.image_service import ImageService
from server.rpc.interceptor import CallInterceptor
from server.rpc.shortening import cut, sent_bytes, summed_up
from server.variants import pristine
from server.violations import InvalidRequest, Violation

ROOM = 7000  # bytes of 8 KiB


async def no_engine(spec: Spec, inputs: Tensors) -> dict[str, Array]:
    """Never comes to that."""
    raise EngineUnavailable(f"{spec.name} is not there: " + "\u2026" * 5000)


@pytest.fixture
async def stub(catalog: Catalog, sdxl_catalog: Catalog) -> AsyncIterator[image_pb2_grpc.ImageServiceStub]:
    """All families that there are, without a network, on a real port; a client as clients are."""
    server = grpc.aio.server(interceptors=(CallInterceptor(),))
    service = ImageService(
        {**catalog, **sdxl_catalog}, pristine(no_engine), Admission(1), WordList("gun"), lambda _spec, _shape: None
    )
    image_pb2_grpc.add_ImageServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield image_pb2_grpc.ImageServiceStub(channel)
    await server.stop(None)
    service.close()


async def refusal(stub: image_pb2_grpc.ImageServiceStub, method: str, request: pb.GenerateRequest) -> list[str]:
    """The fields that a call is refused for. Its trailers have room left, and its message is the one of its details."""
    id = (("x-request-id", "x" * 128),)
    call = (
        stub.Generate(request, metadata=id)
        if method == "Generate"
        else stub.GenerateStream(pb.GenerateStreamRequest(request=request, preview_interval=2**31 - 1), metadata=id)
    )
    async with asyncio.timeout(HANG_SECONDS):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await (call.read() if isinstance(call, grpc.aio.UnaryStreamCall) else call)
    error = refused.value
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    sent = sum(len(key) + len(value) * 4 / 3 for key, value in error.trailing_metadata() or ())
    assert sent + sent_bytes(error.details() or "") < ROOM
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it wants a call of the other API; the same methods
    told = error_details_pb2.BadRequest()
    assert status is not None
    assert status.details[1].Unpack(told)
    assert all(violation.description for violation in told.field_violations)
    return [violation.field.removeprefix("request.") for violation in told.field_violations]


def everything_wrong(engine: str, text: str) -> pb.GenerateRequest:
    """Each field as wrong as it can be; what is repeated of a text is `text`."""
    return pb.GenerateRequest(
        engine=engine,
        prompt=text * 10_001,
        prompt_2=text * 10_001,
        negative_prompt=text * 10_001,
        negative_prompt_2=text * 10_001,
        cfg_scale=-math.inf,
        steps=-(2**31),
        width=2**31 - 1,
        height=2**31 - 1,
        num_images=-(2**31),
        seed=-(2**63),
        seeds=[pb.Seed(value=-(2**63)) for _ in range(16)],
        sampler=-(2**31),  # type: ignore[arg-type]  # an enum is open
        image_encoding=-(2**31),  # type: ignore[arg-type]
        init_image=text.encode() * 5000,
        strength=-1e308,
        mask_image=text.encode() * 5000,
        outpainting=True,
        inpaint_full_res=True,
        inpaint_full_res_padding=-(2**31),
        checkpoint=text * 5000,
        vae=text * 5000,
        loras={text * 5000: math.nan},
        textual_inversions={text * 5000: text * 5000},
        clip_skip=-(2**31),
        controlnet=text * 5000,
        controlnet_image=text.encode() * 5000,
        controlnet_preprocess=False,
        controlnet_conditioning_scale=-1e308,
        controlnet_early_stop=-1e308,
        high_noise_frac=-1e308,
        use_refiner=False,
        style_preset=text * 5000,
        ip_adapter_image=text.encode() * 5000,
        ip_adapter_mask_image=text.encode() * 5000,
        ip_adapter_method=-(2**31),  # type: ignore[arg-type]
        ip_adapter_mode=-(2**31),  # type: ignore[arg-type]
        ip_adapter=text * 5000,
        ip_adapter_scale=-1e308,
        transfer_images={text * 5000: pb.TransferImages(images=[b"x"])},
    )


NEVER_WRONG = {"controlnet_preprocess", "use_refiner"}
WITH_PICTURES = {"outpainting", "inpaint_full_res"}  # nothing is wrong with them beside pictures, be those unreadable


@pytest.mark.parametrize("text", ["x", "\0", "\U0001f3e0", "\U0010ffff", "%"], ids=ascii)
@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
@pytest.mark.parametrize("engine", ["sd15", "sdxl"])
async def test_each_wrong_field_is_named_however_many_there_are(
    stub: image_pb2_grpc.ImageServiceStub, method: str, engine: str, text: str
) -> None:
    told = await refusal(stub, method, everything_wrong(engine, text))
    wrong = {field.partition("[")[0] for field in told}  # of a map the entry is told
    fields = {field.name for field in pb.GenerateRequest.DESCRIPTOR.fields} - NEVER_WRONG - WITH_PICTURES - {"engine"}
    assert wrong >= fields
    assert ("preview_interval" in wrong) == (method == "GenerateStream")


@pytest.mark.parametrize("text", ["x", "\0", "\U0001f3e0", "\U0010ffff", "%", "'\""], ids=ascii)
@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_a_long_name_is_not_sent_back(stub: image_pb2_grpc.ImageServiceStub, method: str, text: str) -> None:
    assert "engine" in await refusal(stub, method, pb.GenerateRequest(engine=text * 5000, prompt="x"))
    style = pb.GenerateRequest(engine="sdxl", prompt="x", style_preset=text * 5000)
    assert "style_preset" in await refusal(stub, method, style)


async def test_a_hundred_bad_seeds_are_refused_as_one_list(stub: image_pb2_grpc.ImageServiceStub) -> None:
    seeds = [pb.Seed(value=-1) for _ in range(100)]
    assert await refusal(stub, "Generate", pb.GenerateRequest(engine="sd15", prompt="x", seeds=seeds)) == ["seeds"]


async def test_an_engine_that_fails_at_length_is_still_readable(stub: image_pb2_grpc.ImageServiceStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Generate(pb.GenerateRequest(engine="sd15", prompt="x", width=512, height=512))
    assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
    assert (failed.value.details() or "").startswith("sd15_text_encoder is not there: \u2026\u2026")
    assert rpc_status.from_call(failed.value) is not None  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["x", "\U0001f3e0", "%\n"], ids=ascii)
@pytest.mark.parametrize("length", [0, 1, 30, 5000])
@pytest.mark.parametrize("count", [1, 2, 40, 100, 3000])
def test_whatever_is_wrong_the_trailers_stay_small_and_nothing_goes_uncounted(
    text: str, length: int, count: int
) -> None:
    violations = tuple(Violation(f"{text}[{i}]", text * length) for i in range(count))
    fault = fault_of(InvalidRequest(violations))
    assert fault is not None
    ((_, sent),) = trailers(fault)
    assert sent_bytes(fault.message) + len(sent) * 4 / 3 < ROOM
    status = status_pb2.Status.FromString(sent)
    assert status.message == fault.message
    told = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(told)
    *named, last = told.field_violations
    if last.field:
        assert len(told.field_violations) == count
    else:
        assert last.description == f"and {count - len(named)} more"
        assert len(named) > 60
    assert (f"and {count - fault.message.count('[')} more" in fault.message) == (fault.message.count("[") < count)


def test_what_fits_is_told_as_it_is() -> None:
    assert summed_up(["steps: 0", "prompt: empty"], 600) == "steps: 0; prompt: empty"
    assert summed_up(["steps: 0", "prompt: empty", "vae: no"], 20) == "steps: 0; and 2 more"
    assert cut("a red house", 11, len) == "a red house"
    assert cut("a red house", 9, len) == "a red..."
