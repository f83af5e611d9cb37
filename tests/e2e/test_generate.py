"""The whole way: a request over gRPC, real engines in the real Triton, a file back."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import RunningService
from google.protobuf.json_format import MessageToDict, ParseDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from mediagen.client import Client, MediagenError
from mediagen.v1 import engine_pb2, image_pb2_grpc
from mediagen.v1 import image_pb2 as pb
from PIL import Image

from server.families.sd15 import FAMILY

SEED = 99
PHASES = ("queue", "conditioning", "denoising", "decoding", "encoding")


@pytest.fixture(scope="module")
def client(service_address: str) -> Iterator[Client]:
    with Client(service_address) as connected:
        yield connected


@pytest.fixture(scope="module")
def channel(service_address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(service_address) as connected:
        yield connected


def small(**fields: object) -> pb.GenerateRequest:
    """A quick request."""
    values = {"engine": "sd15", "prompt": "a red house in the snow", "steps": 2, "width": 384, "height": 704} | fields
    return pb.GenerateRequest(image_encoding=pb.IMAGE_ENCODING_PNG, **values)


def pixels(image: pb.Image) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(image.data)).convert("RGB"))


def test_a_call_returns_a_picture_of_the_size_asked_for_with_all_that_made_it(client: Client) -> None:
    reply = client.generate(small(seed=SEED, cfg_scale=5.0, sampler=pb.SAMPLER_K_EULER))
    (image,) = reply.images
    assert pixels(image).shape == (704, 384, 3)
    assert (image.width, image.height, image.seed, image.index) == (384, 704, SEED, 0)
    assert image.safety_check == pb.SAFETY_CHECK_NOT_CHECKED
    assert MessageToDict(reply.effective, preserving_proto_field_name=True) == {
        "engine": "sd15",
        "prompt": "a red house in the snow",
        "cfg_scale": 5.0,
        "steps": 2,
        "evaluations": 2,
        "width": 384,
        "height": 704,
        "seeds": [SEED],
        "sampler": "SAMPLER_K_EULER",
        "image_encoding": "IMAGE_ENCODING_PNG",
        "models": ["sd15_text_encoder", "sd15_unet", "sd15_vae_decoder"],
    }
    phases = [getattr(reply.timings, f"{phase}_ms") for phase in PHASES]
    assert all(phase > 0 for phase in phases)
    assert sum(phases) <= reply.timings.total_ms


def test_the_file_says_how_it_was_made_and_that_alone_makes_it_again(client: Client) -> None:
    (first,) = client.generate(small(num_images=1)).images  # a random seed
    again = ParseDict(json.loads(Image.open(BytesIO(first.data)).text["parameters"]), pb.GenerateRequest())
    (second,) = client.generate(again).images
    assert np.array_equal(pixels(first), pixels(second))


def test_a_stream_tells_accepted_progress_pictures_and_summary_in_this_order(client: Client) -> None:
    events = list(client.stream(small(num_images=2, seed=SEED)))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "accepted"
    assert kinds[-1] == "summary"
    assert kinds.count("image") == 2
    for index in range(2):
        steps = [
            event.progress.evaluation
            for event in events
            if event.HasField("progress") and event.progress.index == index
        ]
        assert steps == [1, 2]
    assert {event.image.seed for event in events if event.HasField("image")} == {SEED, SEED + 1}
    assert list(events[0].accepted.effective.seeds) == [SEED, SEED + 1]


def test_a_seed_gives_the_same_picture_alone_and_beside_seven_other_requests(client: Client) -> None:
    alone = pixels(client.generate(small(seed=SEED, steps=4)).images[0])
    samplers = [pb.SAMPLER_DDIM, pb.SAMPLER_K_EULER, pb.SAMPLER_K_EULER_ANCESTRAL, pb.SAMPLER_DPM_PLUS_PLUS_2M_KARRAS]
    others = [
        small(seed=index, steps=3 + index % 4, cfg_scale=1.0 + index, sampler=samplers[index % 4]) for index in range(7)
    ]
    with ThreadPoolExecutor(8) as pool:
        company = [pool.submit(client.generate, other) for other in others]
        beside = pixels(pool.submit(client.generate, small(seed=SEED, steps=4)).result().images[0])
        for call in company:
            call.result()
    assert np.abs(alone.astype(int) - beside).max() <= 2


def test_one_picture_of_many_equals_the_same_seed_alone(client: Client) -> None:
    many = client.generate(small(num_images=3, seed=SEED)).images
    (third,) = client.generate(small(seed=SEED + 2)).images
    assert np.abs(pixels(many[2]).astype(int) - pixels(third)).max() <= 2


@pytest.mark.parametrize("size", [FAMILY.sizes[0], FAMILY.sizes[1], FAMILY.sizes[-1]], ids=str)
def test_sizes_come_out_as_asked(client: Client, size: tuple[int, int]) -> None:
    width, height = size
    (image,) = client.generate(small(width=width, height=height, steps=1, cfg_scale=1.0)).images
    assert pixels(image).shape == (height, width, 3)


def test_a_jpeg_is_the_default(client: Client) -> None:
    reply = client.generate(pb.GenerateRequest(engine="sd15", prompt="x", steps=1, width=384, height=704))
    assert Image.open(BytesIO(reply.images[0].data)).format == "JPEG"


def test_every_violation_comes_back_by_field(client: Client) -> None:
    with pytest.raises(MediagenError) as refused:
        client.generate(small(steps=201, cfg_scale=float("nan"), width=7, loras={"neon": 1.0}, prompt="x" * 10_001))
    assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT
    assert {field for field, _ in refused.value.violations} == {
        "steps", "cfg_scale", "width", "height", "loras[neon]", "prompt",
    }  # fmt: skip


def test_a_stream_names_its_fields_by_their_path(client: Client, channel: grpc.Channel) -> None:
    with pytest.raises(MediagenError) as refused:
        list(client.stream(small(steps=0)))
    assert [field for field, _ in refused.value.violations] == ["request.steps"]


def test_an_overlong_prompt_is_cut_and_says_so(client: Client) -> None:
    reply = client.generate(small(prompt="a red house " * 80 + "lighthouse", steps=1))
    assert len(reply.notices) == 1
    assert "lighthouse" in reply.notices[0]


def test_a_method_of_a_later_version_says_so(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        list(image_pb2_grpc.ImageServiceStub(channel).GenerateBatch(iter(())))
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "not available in this version" in refused.value.details()


def test_engines_are_listed_with_sizes_samplers_and_state(client: Client) -> None:
    (engine,) = (engine for engine in client.engines() if engine.name == "sd15")
    assert (engine.name, engine.family, engine.state) == ("sd15", "sd15", engine_pb2.ENGINE_STATE_READY)
    assert len(engine.sizes) == 25
    assert (engine.default_size.width, engine.default_size.height) == (512, 512)
    assert pb.SAMPLER_DPM_PLUS_PLUS_2M_KARRAS in engine.samplers


def test_a_caller_gets_its_own_request_id_back(channel: grpc.Channel) -> None:
    call = image_pb2_grpc.ImageServiceStub(channel).Generate
    reply, state = call.with_call(small(steps=1), metadata=(("x-request-id", "mine-1"),))
    assert reply.request_id == "mine-1"
    assert ("x-request-id", "mine-1") in [(key, value) for key, value in state.trailing_metadata()]


def test_health_and_reflection_answer_on_the_same_port(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "mediagen.v1.ImageService"):
        assert (
            health.Check(health_pb2.HealthCheckRequest(service=name)).status == health_pb2.HealthCheckResponse.SERVING
        )
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {listed.name for listed in answer.list_services_response.service}
    assert {"mediagen.v1.ImageService", "mediagen.v1.EngineService", "mediagen.v1.AssetService"} <= names


def test_the_gateway_stays_small_and_without_torch(client: Client, service: RunningService) -> None:
    client.generate(small(num_images=4))
    process = Path(f"/proc/{service.process.pid}")
    (resident,) = (line for line in (process / "status").read_text().splitlines() if line.startswith("VmHWM"))
    assert int(resident.split()[1]) < 250 * 1024  # KiB, the highest it ever was
    maps = (process / "maps").read_text()
    assert "torch" not in maps
    assert "openvino" not in maps  # it computes nothing itself


@pytest.mark.parametrize(
    "prompt",
    [
        "\0",
        " ",
        "\U0001f600" * 10_000,
        "\u3000" * 10_000,
        "(((:1.5))) \\(",
        "a" * 10_000,
        "\ud7ff\ue000\uffff",
        "<|endoftext|>",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("encoding", [pb.IMAGE_ENCODING_JPEG, pb.IMAGE_ENCODING_PNG])
def test_any_text_of_the_allowed_length_is_drawn(client: Client, prompt: str, encoding: pb.ImageEncoding) -> None:
    request = small(prompt=prompt, negative_prompt=prompt, steps=1, cfg_scale=2.0)
    request.image_encoding = encoding
    assert pixels(client.generate(request).images[0]).shape == (704, 384, 3)
