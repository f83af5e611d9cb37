"""Pictures on their way into a plan: they hold nobody up, take little memory at a time, and wait in no long row."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import grpc
import pytest
from conftest import HANG_SECONDS, hold_a_step
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from mediagen.v1 import image_pb2 as pb
from PIL import Image
from rpc.conftest import Served, status_of

from server.asked.shelf import Shelf
from server.catalog import Catalog
from server.plan import Plan
from server.request import plan, positive_texts
from server.rpc import reader
from server.rpc.image_service import ROW
from server.rpc.interceptor import Received

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = pb.GenerateRequest(engine="sd15", prompt="a red house", steps=1, width=384, height=704)
LONG = pb.GenerateRequest(engine="sd15", prompt="a red house", steps=200, width=384, height=704)
PLAN_MIB = 900  # that reading the largest request takes; two are read at a time


def file(width: int, height: int, colour: str) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def heavy() -> pb.GenerateRequest:
    """48 megapixels, twice, in 4 KB."""
    request = pb.GenerateRequest(
        init_image=file(8000, 6000, "blue"), mask_image=file(8000, 6000, "white"), outpainting=True
    )
    request.MergeFrom(TEXT)
    assert request.ByteSize() < 4_096
    return request


@pytest.fixture
def light() -> pb.GenerateRequest:
    request = pb.GenerateRequest(init_image=file(9, 9, "blue"))
    request.MergeFrom(TEXT)
    return request


@dataclass
class Gate:
    """Reading of pictures that waits until it is let go."""

    open: threading.Event = field(default_factory=threading.Event)
    inside: int = 0
    most: int = 0
    begun: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, request: pb.GenerateRequest, catalog: Catalog, shelf: Shelf) -> Plan:
        if not request.init_image:
            return plan(request, catalog)
        with self.lock:
            self.begun += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            assert self.open.wait(HANG_SECONDS)
            return plan(request, catalog)
        finally:
            with self.lock:
                self.inside -= 1

    async def until_begun(self, number: int) -> None:
        async with asyncio.timeout(HANG_SECONDS):
            while self.begun < number:  # noqa: ASYNC110  # another thread's
                await asyncio.sleep(0.005)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(reader, "plan", gate.plan)
    yield gate
    gate.open.set()


async def test_a_small_file_of_a_large_picture_holds_up_no_step(served: Served, heavy: pb.GenerateRequest) -> None:
    """On the loop the longest gap between its turns would be all of the reader."""
    longest, stop = 0.0, asyncio.Event()

    async def tick() -> None:
        nonlocal longest
        while not stop.is_set():
            begin = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - begin)

    ticking = asyncio.create_task(tick())
    begin = time.perf_counter()
    explained = await served.stub.Explain(pb.ExplainRequest(request=heavy))
    seconds = time.perf_counter() - begin
    stop.set()
    await ticking
    assert not explained.violations
    assert longest < seconds / 3, (longest, seconds)


async def test_a_full_service_refuses_a_picture_without_reading_it(served: Served) -> None:
    inside = [served.stub.Generate(LONG) for _ in range(2)]
    await hold_a_step(served.engines, served.unet)
    broken = pb.GenerateRequest(init_image=b"no picture")
    broken.MergeFrom(TEXT)
    for call in (
        served.stub.Generate(broken),
        served.stub.GenerateStream(pb.GenerateStreamRequest(request=broken)),
    ):
        assert await status_of(call) == grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in inside:
        call.cancel()
    served.engines.go.set()


async def test_who_has_a_permit_keeps_it_while_the_picture_is_read(
    served: Served, gate: Gate, light: pb.GenerateRequest
) -> None:
    calls = [served.stub.Generate(light) for _ in range(2)]
    await gate.until_begun(2)
    assert served.admission.inside == 2
    assert await status_of(served.stub.Generate(light)) == grpc.StatusCode.RESOURCE_EXHAUSTED
    gate.open.set()
    assert [len((await call).images) for call in calls] == [1, 1]
    assert served.admission.inside == 0


@pytest.mark.parametrize("permits", [ROW + 2])
@pytest.mark.parametrize("method", ["Explain", "Generate", "GenerateStream"])
async def test_two_pictures_are_read_at_a_time_and_few_wait(
    served: Served, gate: Gate, light: pb.GenerateRequest, method: str
) -> None:
    ask = {
        "Explain": lambda: served.stub.Explain(pb.ExplainRequest(request=light)),
        "Generate": lambda: served.stub.Generate(light),
        "GenerateStream": lambda: served.stub.GenerateStream(pb.GenerateStreamRequest(request=light)),
    }[method]
    calls = [ask() for _ in range(ROW + 1)]
    statuses = {asyncio.create_task(status_of(call)): call for call in calls}
    await gate.until_begun(reader.AT_A_TIME)
    async with asyncio.timeout(HANG_SECONDS):
        (refused,), others = await asyncio.wait(statuses, return_when=asyncio.FIRST_COMPLETED)
    assert refused.result() == grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(await statuses[refused].trailing_metadata())
    status, retry = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]), error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert served.admission.inside == (0 if method == "Explain" else ROW)
    assert (await served.stub.Generate(TEXT)).images, "who brings no picture does not wait in that row"
    gate.open.set()
    assert set(await asyncio.gather(*others)) == {grpc.StatusCode.OK}
    assert (gate.begun, gate.most) == (ROW, reader.AT_A_TIME)


async def test_a_text_is_read_while_pictures_wait(served: Served, gate: Gate, light: pb.GenerateRequest) -> None:
    asked = [served.stub.Explain(pb.ExplainRequest(request=light)) for _ in range(ROW)]
    await gate.until_begun(reader.AT_A_TIME)
    for prompt in ("a house " * 1_000, "a red house"):
        request = pb.GenerateRequest(engine="sd15", prompt=prompt)
        assert (await served.stub.Explain(pb.ExplainRequest(request=request))).effective.engine == "sd15"
    assert gate.begun == reader.AT_A_TIME
    gate.open.set()
    await asyncio.gather(*asked)


async def test_long_texts_are_parsed_for_the_filter_beside_the_loop_and_once(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    on: list[threading.Thread] = []

    def parsed(request: pb.GenerateRequest) -> Mapping[str, str]:
        on.append(threading.current_thread())
        return positive_texts(request)

    monkeypatch.setattr(reader, "positive_texts", parsed)
    gun = pb.GenerateRequest(engine="sd15", prompt="[" * 9_990 + " gun")
    refused = await served.stub.Explain(pb.ExplainRequest(request=gun))
    assert [violation.field for violation in refused.violations] == ["prompt"]
    (thread,) = on
    assert thread is not threading.current_thread()


async def test_a_caller_who_leaves_the_row_is_not_read(served: Served, gate: Gate, light: pb.GenerateRequest) -> None:
    asked = [served.stub.Explain(pb.ExplainRequest(request=light)) for _ in range(reader.AT_A_TIME)]
    await gate.until_begun(reader.AT_A_TIME)
    left = served.stub.Explain(pb.ExplainRequest(request=light), timeout=0.3)
    assert await status_of(left) == grpc.StatusCode.DEADLINE_EXCEEDED
    gate.open.set()
    await asyncio.gather(*asked)
    await served.stub.Explain(pb.ExplainRequest(request=light))
    assert gate.begun == reader.AT_A_TIME + 1


@pytest.mark.parametrize("whose", ["those who wait", "nobody"])
async def test_of_a_caller_who_left_the_row_nothing_is_kept(
    catalog: Catalog, gate: Gate, light: pb.GenerateRequest, whose: str
) -> None:
    """Whether the threads read for callers who are there or for some who left."""
    made = reader.Reader(catalog)
    begun = [asyncio.create_task(made.plan(light)) for _ in range(reader.AT_A_TIME)]
    await gate.until_begun(reader.AT_A_TIME)
    if whose == "nobody":
        for task in begun:
            task.cancel()
        await asyncio.wait(begun)
    left = pb.GenerateRequest(init_image=b"x" * 4_096)
    ours = sys.getrefcount(left)
    waiting = asyncio.create_task(made.plan(left))
    await asyncio.sleep(0)
    assert sys.getrefcount(left) > ours
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert waiting.cancelled()
    del waiting
    assert sys.getrefcount(left) == ours
    gate.open.set()
    assert (await made.plan(light)).size.width == 384
    assert gate.begun == reader.AT_A_TIME + 1
    made.close()


async def test_a_reader_that_is_closed_begins_nothing_more_and_leaves_no_thread(
    catalog: Catalog, gate: Gate, light: pb.GenerateRequest
) -> None:
    before = set(threading.enumerate())
    made = reader.Reader(catalog)
    asked = [asyncio.create_task(made.plan(light)) for _ in range(reader.AT_A_TIME + 1)]
    await gate.until_begun(reader.AT_A_TIME)
    made.close()
    gate.open.set()
    done, _ = await asyncio.wait(asked)
    assert sum(isinstance(task.exception(), RuntimeError) for task in done) == 1
    assert gate.begun == reader.AT_A_TIME
    for thread in set(threading.enumerate()) - before:
        thread.join(HANG_SECONDS)
        assert not thread.is_alive()


MEASURE = """
import resource, sys
from pathlib import Path
from mediagen.v1 import image_pb2 as pb
from server.catalog import read_catalog
from server.request import plan
def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
catalog, request = read_catalog(Path("model_repository")), pb.GenerateRequest.FromString(sys.stdin.buffer.read())
begin = most()
what = plan(request, catalog)
print(most() - begin)
"""


def test_reading_the_largest_pictures_takes_a_bounded_memory(heavy: pb.GenerateRequest) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], input=heavy.SerializeToString(), cwd=ROOT, env={"PYTHONPATH": ".:client"},
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert float(done.stdout) < PLAN_MIB


def test_a_plan_holds_pixels_at_its_own_size_alone(catalog: Catalog) -> None:
    request = pb.GenerateRequest(init_image=file(2000, 1500, "blue"), mask_image=file(2000, 1500, "white"))
    request.MergeFrom(TEXT)
    for outpainting in (False, True):
        request.outpainting = outpainting
        what = plan(request, catalog)
        arrays = {id(array): array for array in vars(what.start).values() if hasattr(array, "base")}
        for array in arrays.values():
            assert array.shape[:2] == (704, 384)
            base = array
            while base is not None and hasattr(base, "base"):
                assert base.nbytes == array.nbytes
                base = base.base
            assert base is None or len(base) <= array.nbytes


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_no_given_file_is_kept_while_its_picture_is_drawn(
    served: Served, monkeypatch: pytest.MonkeyPatch, light: pb.GenerateRequest, method: str
) -> None:
    """Nothing refers to the message any more; messages have no weak references, hence the count."""
    received: list[Message] = []
    take = Received.take

    def noted(self: Received) -> Message:
        message = take(self)
        received.append(message)
        return message

    monkeypatch.setattr(Received, "take", noted)
    light.steps = 200
    light.strength = 1
    stream = pb.GenerateStreamRequest(request=light)
    call = served.stub.Generate(light) if method == "Generate" else served.stub.GenerateStream(stream)
    await hold_a_step(served.engines, served.unet)
    (request,) = received
    received.clear()
    assert request == (light if method == "Generate" else stream)
    assert sys.getrefcount(request) == 2  # ours, and the argument
    call.cancel()
    served.engines.go.set()
