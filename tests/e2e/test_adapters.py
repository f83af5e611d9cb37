"""Adapters end to end: what a stream tells of them, what hostile files and wishes come to, what the demo's do.

The picture without any is the same before and after all of it, and no file is left.
"""

import hashlib
import json
import os
import pickle
import signal
import struct
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from builder.files import engine, some_random
from conftest import RunningService
from google.protobuf.json_format import ParseDict
from mediagen.client import Client, MediagenError
from mediagen.v1 import asset_pb2
from mediagen.v1 import image_pb2 as pb
from PIL import Image
from safetensors.numpy import save

from server.engines.port import Array

TENANT = "adapters"
LAYER = "text_model.encoder.layers.0.self_attn.q_proj"
Code = grpc.StatusCode
drawn_with: set[str] = set()  # variants that pictures of this module were drawn with


def draw(client: Client, **fields: Any) -> pb.GenerateResponse:
    """A quick picture."""
    reply = client.generate(request(**fields), timeout=120)
    drawn_with.update(variant.model for variant in reply.variants)
    return reply


def request(**fields: Any) -> pb.GenerateRequest:
    said = {"engine": "sd15", "prompt": "a red house", "steps": 1, "width": 384, "height": 704, "seed": 7}
    return ParseDict({**said, "image_encoding": "IMAGE_ENCODING_PNG", **fields}, pb.GenerateRequest())


def pixels(reply: pb.GenerateResponse) -> Array:
    """height width 3, uint8."""
    return np.asarray(Image.open(BytesIO(reply.images[0].data)).convert("RGB"))


@pytest.fixture(scope="module")
def folder(service: RunningService) -> Path:
    """That the service keeps its files in."""
    return service.log.parent


@pytest.fixture(scope="module")
def client(service: RunningService) -> Iterator[Client]:
    with Client(service.address, TENANT) as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def _nothing_remains(client: Client, folder: Path) -> Iterator[None]:
    """Before and after the whole module, its failed requests among it; the variants of its pictures are kept."""
    base, before = draw(client).images[0].data, listing(folder)
    yield
    for asset in client.assets(asset_pb2.ListAssetsRequest()):
        if asset.owned:
            client.delete_asset(asset.id)
    assert draw(client).images[0].data == base
    assert listing(folder) - before <= {f"cache/variants/{model}" for model in drawn_with}


def listing(folder: Path) -> set[str]:
    """Files of the library, and what is in the folder of variants."""
    blobs = (path for part in ("blobs", "partial") for path in folder.joinpath("assets", part).rglob("*"))
    files = {str(path.relative_to(folder)) for path in blobs if path.is_file()}
    return files | {str(path.relative_to(folder)) for path in folder.joinpath("cache", "variants").glob("*")}


def upload(client: Client, name: str, content: bytes, **fields: Any) -> asset_pb2.Asset:
    said = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), **fields}
    described = asset_pb2.AssetDescription(name=name, type=asset_pb2.ASSET_TYPE_LORA, **said)
    pieces = (content[at : at + 2**20] for at in range(0, len(content), 2**20))
    return client.upload(described, pieces, lambda count: None)


def lora(rank: int = 4, seed: int = 1, scale: float = 0.3) -> dict[str, Array]:
    """Over one layer of SD 1.5's text encoder."""
    out, into = engine("sd15").components["text_encoder"][f"{LAYER.removeprefix('text_model.')}.weight"]
    return {
        f"text_encoder.{LAYER}.lora_A.weight": some_random(seed, rank, into, scale=scale).astype(np.float16),
        f"text_encoder.{LAYER}.lora_B.weight": some_random(seed + 1, out, rank, scale=scale).astype(np.float16),
    }


def lora_of_sdxl() -> dict[str, Array]:
    """Over a layer that SD 1.5 does not have."""
    large, small = (engine(card).components["unet"] for card in ("sdxl", "sd15"))
    name = next(name for name in large if name.endswith("attn1.to_q.weight") and name not in small)
    (out, into), layer = large[name], name.removesuffix(".weight")
    return {
        f"unet.{layer}.lora_A.weight": np.ones((2, into), np.float16),
        f"unet.{layer}.lora_B.weight": np.ones((out, 2), np.float16),
    }


def with_header(change: Callable[[dict[str, Any]], None]) -> bytes:
    """A LoRA whose header says something else."""
    content = save(lora())
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    told = json.dumps(header).encode()
    return struct.pack("<Q", len(told)) + told + content[8 + length :]


def overlapping(header: dict[str, Any]) -> None:
    first, second = (entry for name, entry in header.items() if name != "__metadata__")
    begin, end = second["data_offsets"]
    second["data_offsets"] = [begin - 2, end - 2]
    assert first["data_offsets"][1] == begin


def beyond(header: dict[str, Any]) -> None:
    entry = list(header.values())[-1]
    entry["data_offsets"] = [2**62, 2**62 + 8]


def not_a_number() -> dict[str, Array]:
    tensors = lora()
    tensors[f"text_encoder.{LAYER}.lora_A.weight"][0, 0] = np.nan
    return tensors


WRONG_WIDTH: Mapping[str, Array] = {
    f"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_{part}.weight": np.ones(shape, np.float16)
    for part, shape in (("A", (4, 1024)), ("B", (320, 4)))
}
HOSTILE: Mapping[str, tuple[Callable[[], bytes], str]] = {  # what is sent, and a part of what is told
    "of no family here": (lambda: save(dict(WRONG_WIDTH)), "320"),
    "with NaN": (lambda: save(not_a_number()), "lora_A"),
    "of rank 10,000": (lambda: save(lora(rank=10_000)), "rank 10000"),
    "truncated": (lambda: save(lora())[:-100], "cut short"),
    "with overlapping tensors": (lambda: with_header(overlapping), "overlaps"),
    "with offsets far beyond its end": (lambda: with_header(beyond), "two offsets"),
    "with a huge header": (lambda: struct.pack("<Q", 2**40) + b"{" * 1000, f"a header of {2**40} bytes"),
    "with a header that is no JSON": (lambda: struct.pack("<Q", 100) + b"[" * 200, "not JSON"),
    "a pickle": (lambda: pickle.dumps({"weight": [1.0] * 100}), "not a safetensors file"),
    "a zip, as torch saves": (lambda: b"PK\x03\x04" + bytes(200), "not a safetensors file"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_rejected_with_a_reason_and_kept_nowhere(client: Client, folder: Path, kind: str) -> None:
    content, said = HOSTILE[kind]
    before = listing(folder)
    with pytest.raises(MediagenError) as refused:
        upload(client, "hostile", content())
    assert refused.value.code == Code.INVALID_ARGUMENT
    told = client.asset("hostile")
    assert told.state == asset_pb2.ASSET_STATE_REJECTED
    assert told.reason in str(refused.value)
    assert said in told.reason
    assert listing(folder) == before
    with pytest.raises(MediagenError) as asked:
        draw(client, loras={"hostile": 1.0})
    assert asked.value.violations[0][0] == "loras[hostile]"
    client.delete_asset("hostile")


def test_more_than_the_library_may_take_is_refused_before_a_byte_is_sent(client: Client, folder: Path) -> None:
    before = listing(folder)
    with pytest.raises(MediagenError) as refused:
        upload(client, "vast", b"x", size_bytes=10**12)
    assert refused.value.code == Code.RESOURCE_EXHAUSTED
    assert listing(folder) == before


def test_a_lora_of_another_family_and_a_hundred_at_once_are_told_by_their_field(client: Client) -> None:
    large = upload(client, "large", save(lora_of_sdxl()))
    assert "sdxl" in large.engines
    assert "sd15" not in large.engines
    for loras, field, why in (
        ({"large": 1.0}, "loras[large]", "not sd15"),
        ({f"one-{number}": 1.0 for number in range(100)}, "loras", "at most 16"),
    ):
        with pytest.raises(MediagenError) as refused:
            draw(client, loras=loras)
        assert refused.value.code == Code.INVALID_ARGUMENT
        ((told, description),) = refused.value.violations
        assert told == field
        assert why in description


def test_weights_that_do_not_fit_in_half_precision_are_told_and_leave_no_variant(client: Client, folder: Path) -> None:
    upload(client, "loud", save(lora(scale=100.0)))
    before = listing(folder)
    with pytest.raises(MediagenError) as refused:
        draw(client, loras={"loud": 1e4})
    assert refused.value.code == Code.INVALID_ARGUMENT
    assert listing(folder) == before


def test_a_stream_says_that_it_prepares_and_its_summary_what_was_built(client: Client) -> None:
    upload(client, "told", save(lora(seed=11)))
    asked = request(loras={"told": 0.75})
    for source in (pb.VARIANT_SOURCE_BUILT, pb.VARIANT_SOURCE_MEMORY):
        events = list(client.stream(asked, timeout=120))
        kinds = [event.WhichOneof("event") for event in events]
        (variant,) = events[-1].summary.variants
        drawn_with.add(variant.model)
        assert variant.source == source
        preparing = [list(event.preparing.models) for event in events if event.HasField("preparing")]
        if source == pb.VARIANT_SOURCE_BUILT:
            assert kinds.index("accepted") < kinds.index("preparing") < kinds.index("progress")
            assert preparing == [[variant.model]]
            assert variant.build_ms > 0
            assert variant.load_ms > 0
        else:
            assert preparing == []
            assert variant.build_ms == variant.load_ms == 0


def test_an_asset_that_is_deleted_while_a_request_waits_for_it_ends_the_request_with_a_reason(
    client: Client, service: RunningService, folder: Path
) -> None:
    upload(client, "brief", save(lora(seed=21)))
    before = {path for path in listing(folder) if "/variants/" in path}
    builder = builder_of(service)
    os.kill(builder, signal.SIGSTOP)  # so that what is asked of it waits
    try:
        events = client.stream(request(loras={"brief": 1.0}), timeout=120)
        while not next(events).HasField("preparing"):
            pass
        client.delete_asset("brief")
    finally:
        os.kill(builder, signal.SIGCONT)
    with pytest.raises(MediagenError) as gone:
        list(events)
    assert gone.value.code == Code.NOT_FOUND
    assert "deleted" in str(gone.value)
    assert {path for path in listing(folder) if "/variants/" in path} == before


def builder_of(service: RunningService) -> int:
    """The pid of the process that writes its variants."""
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            arguments = Path(f"/proc/{entry}/cmdline").read_text().split("\0")
            parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # ended meanwhile
            continue
        if parent == service.process.pid and "server.builder" in arguments:
            return int(entry)
    raise AssertionError("no builder below the service")


def test_the_demos_look_grows_with_its_weight(client: Client) -> None:
    """Blueprints are white on dark blue. Its other file has the same weights, see tests/parity/test_weights.py."""
    drawn = [
        pixels(draw(client, loras={"blueprint-sd15": weight}, steps=4, cfg_scale=2.0, prompt="a red house in a meadow"))
        for weight in (0.0, 0.5, 1.0)
    ]
    apart = [float(np.linalg.norm(picture.mean((0, 1)) - drawn[0].mean((0, 1)))) for picture in drawn]
    assert 5 < apart[1] < 0.9 * apart[2], apart
