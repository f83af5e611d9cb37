"""What happens when things end: Triton is killed, callers go away, the service is told to stop."""

import os
import re
import select
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from conftest import HANG_SECONDS, RunningService, start_service, stop_service
from mediagen.client import Client, MediagenError
from mediagen.v1 import image_pb2 as pb

LONG = pb.GenerateRequest(engine="sd15", prompt="a red house", steps=200, width=384, height=704)
FIVE = pb.GenerateRequest(engine="sd15", prompt="a red house", steps=5, width=384, height=704)
BACK_SECONDS = 10.0  # in which a killed Triton serves again; where a start takes longer than that, as long as a start
DRAINING_SECONDS = 5.0  # of a call that is to be running all the while, far below the 30 s it gets after SIGTERM
Watch = Callable[[set[int]], list[int]]
SHORT = pb.GenerateRequest(engine="sd15", prompt="a red house", steps=1, width=384, height=704)


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[RunningService]:
    """A service that the test may harm, with its networks loaded."""
    running = start_service(tmp_path, MEDIAGEN_PRELOAD="sd15")
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.wait()


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Handles of processes, which stay theirs when a pid is used again."""
    handles: list[int] = []

    def opened(pids: set[int]) -> list[int]:
        new = [os.pidfd_open(pid) for pid in pids]
        handles.extend(new)
        return new

    yield opened
    for handle in handles:
        os.close(handle)


def all_ended(handles: list[int]) -> bool:
    return len(select.select(handles, [], [], 0)[0]) == len(handles)


def regions(service: RunningService) -> list[str]:
    """Shared memory of the Tritons of a service, by the mark of server/engines/leftovers.py: it has the owner's pid."""
    return [name for name in os.listdir("/dev/shm") if re.match(rf"mediagen_\d+_{service.process.pid}_", name)]


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
    """The pid of its Triton; its stubs carry its name in their arguments too."""
    for pid in descendants(service.process.pid):
        if "tritonserver" in Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]:
            return pid
    raise AssertionError("no tritonserver below the service")


def test_a_killed_triton_fails_the_call_at_once_and_comes_back(own_service: RunningService, watch: Watch) -> None:
    start_seconds = time.monotonic() - own_service.begun
    with Client(own_service.address) as client, ThreadPoolExecutor(1) as pool:
        started = client.stream(LONG, timeout=120)
        while not next(started).HasField("progress"):
            pass
        rest = pool.submit(list, started)
        triton = triton_of(own_service)
        first = watch({triton} | descendants(triton))  # the builder beside it lives on
        assert len(first) > 1  # Triton and a stub
        assert regions(own_service)
        os.kill(triton, signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(MediagenError) as failed:
            rest.result(timeout=30)
        assert time.monotonic() - killed < 1.0
        assert failed.value.code == grpc.StatusCode.UNAVAILABLE
        assert failed.value.retry_seconds is not None
        served = _retry(client, until=killed + max(BACK_SECONDS, start_seconds))
        assert len(served.images) == 1
    assert all_ended(first)
    second = watch(descendants(own_service.process.pid))
    assert len(second) > 1
    assert stop_service(own_service) == 0
    assert all_ended(second)
    assert regions(own_service) == []


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


def test_sigterm_lets_a_running_call_end_and_refuses_new_ones(own_service: RunningService, watch: Watch) -> None:
    with Client(own_service.address) as client, ThreadPoolExecutor(1) as pool:
        client.generate(SHORT)  # the first one of a shape is slower
        step = client.generate(FIVE).timings.denoising_ms / 1e3 / FIVE.steps
        running = pb.GenerateRequest()
        running.CopyFrom(LONG)
        running.steps = min(LONG.steps, max(5, round(DRAINING_SECONDS / step)))
        events = client.stream(running, timeout=120)
        while not next(events).HasField("progress"):
            pass
        rest = pool.submit(list, events)
        children = watch(descendants(own_service.process.pid))
        own_service.process.send_signal(signal.SIGTERM)
        _wait_for_line(own_service.log, "draining")
        with Client(own_service.address) as newcomer:
            for caller in (client, newcomer):
                with pytest.raises(MediagenError) as refused:
                    caller.generate(SHORT, timeout=HANG_SECONDS)
                assert refused.value.code == grpc.StatusCode.UNAVAILABLE
        assert not rest.done()  # refused because of the signal, not because everything was over
        kinds = [event.WhichOneof("event") for event in rest.result(timeout=60)]
        assert kinds[-2:] == ["image", "summary"]
    assert own_service.process.wait(timeout=30) == 0
    assert children
    assert all_ended(children)
    assert regions(own_service) == []


def _wait_for_line(log: Path, text: str) -> None:
    end = time.monotonic() + HANG_SECONDS
    while text not in log.read_text():
        assert time.monotonic() < end, f"the log never says {text!r}"
        time.sleep(0.02)  # another process's file has no event to wait for


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
        ({"MEDIAGEN_TRITON": "127.0.0.1:1"}, "no Triton answers at 127.0.0.1:1"),
        ({"MEDIAGEN_ENGINE_MEMORY": "half"}, "must be a number of bytes"),
        ({"MEDIAGEN_PRELOAD": "sd16"}, "MEDIAGEN_PRELOAD names sd16; this repository has"),
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
