"""LoRAs end to end: sets come, go and come back, each with its own picture; a service started again finds them."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from conftest import ROOT, RunningService, start_service, stop_service
from google.protobuf.json_format import ParseDict
from mediagen.v1 import asset_pb2, asset_pb2_grpc, image_pb2_grpc
from mediagen.v1 import image_pb2 as pb

from bench.loras import lora
from server.assets.asset import blob

SETS: tuple[dict[str, float], ...] = ({"one": 1.0}, {"two": 0.8}, {"one": 1.0, "two": 0.8}, {"one": 1.0}, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a service of its own, which may be started again."""
    return tmp_path_factory.mktemp("variants")


@pytest.fixture(scope="module")
def own(folder: Path) -> Iterator[RunningService]:
    """With two LoRAs over its text encoder, of random weights."""
    service = start_service(folder)
    with grpc.insecure_channel(service.address) as channel:
        assets = asset_pb2_grpc.AssetServiceStub(channel)
        for seed, name in enumerate(("one", "two")):
            part = lora(ROOT / "model_repository", folder / "made", "sd15", "text_encoder", seed)
            content = blob(folder / "made", part.sha256).read_bytes()
            described = asset_pb2.AssetDescription(
                name=name, type=asset_pb2.ASSET_TYPE_LORA, size_bytes=len(content), sha256=part.sha256
            )
            messages = (
                asset_pb2.UploadAssetRequest(description=described),
                asset_pb2.UploadAssetRequest(chunk=content),
            )
            uploaded = assets.UploadAsset(iter(messages)).asset
            assert uploaded.state == asset_pb2.ASSET_STATE_READY, uploaded.reason
    yield service
    if service.process.poll() is None:
        stop_service(service)


def draw(service: RunningService, loras: dict[str, float]) -> pb.GenerateResponse:
    """A quick picture."""
    fields = {"engine": "sd15", "prompt": "a red house", "steps": 1, "width": 384, "height": 704, "seed": 7}
    request = ParseDict({**fields, "loras": loras}, pb.GenerateRequest())
    with grpc.insecure_channel(service.address) as channel:
        reply: pb.GenerateResponse = image_pb2_grpc.ImageServiceStub(channel).Generate(request, timeout=120)
        return reply


def test_one_set_then_another_then_both_then_the_first_then_none_give_each_its_own_picture(
    own: RunningService, folder: Path
) -> None:
    plain = draw(own, {})
    replies = [draw(own, loras) for loras in SETS]
    one, two, both, again, none = (reply.images[0].data for reply in replies)
    assert one == again
    assert none == plain.images[0].data
    assert len({one, two, both, none}) == 4
    assert [[variant.source for variant in reply.variants] for reply in replies] == [
        [pb.VARIANT_SOURCE_BUILT], [pb.VARIANT_SOURCE_BUILT], [pb.VARIANT_SOURCE_BUILT], [pb.VARIANT_SOURCE_MEMORY], [],
    ]  # fmt: skip
    assert len(list((folder / "cache" / "variants").glob("sd15_text_encoder--*"))) == 3


def test_first_requests_at_the_same_time_draw_the_same_picture_of_one_build(own: RunningService) -> None:
    with ThreadPoolExecutor(4) as callers:
        replies = list(callers.map(lambda _: draw(own, {"two": 0.3}), range(4)))
    assert len({reply.images[0].data for reply in replies}) == 1
    assert len({reply.variants[0].build_ms for reply in replies}) == 1


def test_a_service_that_was_killed_finds_its_variants_on_disk_and_leaves_no_builder(
    own: RunningService, folder: Path
) -> None:
    first = draw(own, {"one": 1.0})
    own.process.send_signal(signal.SIGKILL)
    own.process.wait(timeout=10)
    started = start_service(folder)
    try:
        second = draw(started, {"one": 1.0})
        assert second.images[0].data == first.images[0].data
        assert second.variants[0].source == pb.VARIANT_SOURCE_DISK
        assert second.variants[0].load_ms > 0
        folders = f"--variants\0{folder / 'cache' / 'variants'}"
        assert sum(folders in line for line in command_lines()) == 1
    finally:
        stop_service(started)
    assert not any(folders in line for line in command_lines())
    assert not list((folder / "cache").glob("builder-*"))  # the killed one's was removed by the next


def command_lines() -> list[str]:
    """Of all processes, arguments ended by NUL."""
    lines = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"))
        except OSError:  # ended meanwhile
            continue
    return lines
