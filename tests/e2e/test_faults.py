"""What happens when things end: Triton is killed, callers go away, the service is told to stop."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from conftest import RunningService, start_service, stop_service
from mediagen.client import Client, MediagenError
from mediagen.v1 import image_pb2 as pb
from mediagen.v1 import image_pb2_grpc

LONG = pb.GenerateRequest(engine="sd15", prompt="a red house", steps=200, width=384, height=704)
FIVE = pb.GenerateRequest(engine="sd15", prompt="a red house", steps=5, width=384, height=704)
SHORT = pb.GenerateRequest(engine="sd15", prompt="a red house", steps=1, width=384, height=704)


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[RunningService]:
    """A service that the test may harm."""
    running = start_service(tmp_path)
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.wait()


def descendants(pid: int) -> set[int]:
    """All processes below one, by their parents in /proc."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ProcessLookupError):
                continue
    found, last = {pid}, set()
    while found != last:
        last = set(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found - {pid}


def triton_of(service: RunningService) -> int:
    for pid in descendants(service.process.pid):
        if "tritonserver" in Path(f"/proc/{pid}/cmdline").read_text():
            return pid
    raise AssertionError("no tritonserver below the service")


def test_a_killed_triton_fails_the_call_at_once_and_comes_back(own_service: RunningService) -> None:
    regions_before = set(os.listdir("/dev/shm"))
    with Client(own_service.address) as client, ThreadPoolExecutor(1) as pool:
        started = client.stream(LONG, timeout=120)
        while not next(started).HasField("progress"):
            pass
        rest = pool.submit(list, started)
        os.kill(triton_of(own_service), signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(MediagenError) as failed:
            rest.result(timeout=30)
        assert time.monotonic() - killed < 1.0
        assert failed.value.code == grpc.StatusCode.UNAVAILABLE
        assert failed.value.retry_seconds is not None
        served = _retry(client, until=killed + 10.0)
        assert len(served.images) == 1
    assert stop_service(own_service) == 0
    assert descendants(own_service.process.pid) == set()
    assert set(os.listdir("/dev/shm")) <= regions_before


def _retry(client: Client, until: float) -> pb.GenerateResponse:
    """Call again as the hint says, until it works or the time is up."""
    while time.monotonic() < until:
        try:
            return client.generate(SHORT, timeout=30)
        except MediagenError as error:
            if error.code != grpc.StatusCode.UNAVAILABLE:
                raise
            time.sleep(0.2)
    raise AssertionError("Triton did not come back in time")


def test_a_cancelled_call_gives_its_place_back_before_its_next_step(service: RunningService) -> None:
    async def cancel_then_call() -> float:
        async with grpc.aio.insecure_channel(service.address) as channel:
            images = image_pb2_grpc.ImageServiceStub(channel)
            call = images.GenerateStream(pb.GenerateStreamRequest(request=LONG))
            async for event in call:
                if event.HasField("progress"):
                    break
            call.cancel()
            begin = time.monotonic()
            await images.Generate(SHORT)
            return time.monotonic() - begin

    # 200 steps of the cancelled call take many times longer than this on any machine
    with Client(service.address) as client:
        step = client.generate(FIVE).timings.denoising_ms / 1e3 / FIVE.steps
    assert asyncio.run(cancel_then_call()) < 100 * step


def test_sigterm_lets_a_running_call_end_and_refuses_new_ones(own_service: RunningService) -> None:
    request = pb.GenerateRequest(engine="sd15", prompt="a red house", steps=12, width=384, height=704)
    with Client(own_service.address) as client, ThreadPoolExecutor(1) as pool:
        events = client.stream(request, timeout=120)
        while not next(events).HasField("progress"):
            pass
        rest = pool.submit(list, events)
        own_service.process.send_signal(signal.SIGTERM)
        kinds = [event.WhichOneof("event") for event in rest.result(timeout=60)]
        assert kinds[-2:] == ["image", "summary"]
    assert own_service.process.wait(timeout=30) == 0
    assert descendants(own_service.process.pid) == set()


def test_more_requests_than_permits_are_refused_with_a_retry_hint(tmp_path: Path) -> None:
    service = start_service(tmp_path, MEDIAGEN_MAX_REQUESTS="1")
    try:
        with Client(service.address) as client:
            inside = client.stream(LONG, timeout=120)
            next(inside)
            with pytest.raises(MediagenError) as refused:
                client.generate(SHORT)
            assert refused.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused.value.retry_seconds == 1.0
            inside.close()
    finally:
        stop_service(service)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"MEDIAGEN_GRPC_ADDRESS": "nonsense"}, "must be host:port"),
        ({"MEDIAGEN_MAX_REQUESTS": "0"}, "whole number above 0"),
        ({"MEDIAGEN_LOG_LEVEL": "LOUD"}, "allowed are DEBUG"),
        ({"MEDIAGEN_MODEL_REPOSITORY": "/nonexistent"}, "holds no engine card"),
        ({"MEDIAGEN_TRITON": "127.0.0.1:1"}, "127.0.0.1:1"),
    ],
)
def test_a_service_that_cannot_start_says_why_in_one_sentence(
    tmp_path: Path, settings: dict[str, str], sentence: str
) -> None:
    with pytest.raises(AssertionError):
        start_service(tmp_path, **settings)
    assert sentence in (tmp_path / "service.log").read_text()


def test_a_taken_port_is_one_sentence(service: RunningService, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        start_service(tmp_path, MEDIAGEN_GRPC_ADDRESS=service.address)
    assert f"cannot listen on {service.address}" in (tmp_path / "service.log").read_text()


def test_without_triton_the_engines_run_in_the_gateway(tmp_path: Path) -> None:
    service = start_service(tmp_path, MEDIAGEN_TRITON="none")
    try:
        with Client(service.address) as client:
            assert len(client.generate(SHORT).images) == 1
            assert "tritonserver" not in "".join(
                Path(f"/proc/{pid}/cmdline").read_text() for pid in descendants(service.process.pid)
            )
    finally:
        assert stop_service(service) == 0
