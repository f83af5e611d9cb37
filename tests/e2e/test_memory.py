"""Networks come at their first use and share a budget; a caller sees it in `ListEngines` and in the time it takes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import grpc
import pytest
from conftest import RunningService, start_service, stop_service
from mediagen.client import Client, MediagenError
from mediagen.v1 import engine_pb2, engine_pb2_grpc
from mediagen.v1 import image_pb2 as pb

SHORT = pb.GenerateRequest(engine="sd15", prompt="a red house", steps=1, seed=3, width=384, height=704)
Start = Callable[..., AbstractContextManager[RunningService]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """A service with settings; all that are started compile their networks once."""
    folder = tmp_path_factory.mktemp("services")

    @contextmanager
    def started(**settings: str) -> Iterator[RunningService]:
        service = start_service(folder, **settings)
        try:
            yield service
        finally:
            stop_service(service)

    return started


def sd15(service: RunningService) -> engine_pb2.Engine:
    """As `ListEngines` has it."""
    with grpc.insecure_channel(service.address) as channel:
        stub = engine_pb2_grpc.EngineServiceStub(channel)
        engines = stub.ListEngines(engine_pb2.ListEnginesRequest()).engines
    return next(engine for engine in engines if engine.name == "sd15")


def test_networks_are_loaded_by_the_first_picture_and_are_the_same_when_there_is_room_for_one_only(
    start: Start, repository: Path
) -> None:
    with start() as service, Client(service.address) as client:
        before = sd15(service)
        assert (before.state, before.loaded_bytes) == (engine_pb2.ENGINE_STATE_UNLOADED, 0)
        picture = client.generate(SHORT, timeout=120).images[0].data
        after = sd15(service)
        assert after.state == engine_pb2.ENGINE_STATE_READY
        assert before.memory_bytes > after.loaded_bytes > 0  # nobody has given a picture yet
    budget = before.memory_bytes // 2  # of four networks
    with start(MEDIAGEN_ENGINE_MEMORY=str(budget)) as service, Client(service.address) as client:
        for _ in range(2):
            assert client.generate(SHORT, timeout=120).images[0].data == picture
        engine = sd15(service)
        assert engine.state == engine_pb2.ENGINE_STATE_UNLOADED
        assert 0 < engine.loaded_bytes <= budget


def test_a_network_larger_than_the_budget_is_refused_with_what_to_do_and_harms_nothing(start: Start) -> None:
    with start(MEDIAGEN_ENGINE_MEMORY="100M") as service, Client(service.address) as client:
        for _ in range(2):
            with pytest.raises(MediagenError, match="set MEDIAGEN_ENGINE_MEMORY to more") as refused:
                client.generate(SHORT, timeout=60)
            assert refused.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused.value.retry_seconds is not None
        service.wait_until_serving(1)


def test_a_deadline_ends_the_wait_for_a_network_and_the_next_caller_finds_it_loaded(start: Start) -> None:
    with start() as service, Client(service.address) as client:
        with pytest.raises(MediagenError) as late:
            client.generate(SHORT, timeout=0.1)  # a process is not even started in that time
        assert late.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
        service.wait_until_serving(1)
        assert client.generate(SHORT, timeout=120).images


def test_a_preloaded_engine_is_ready_as_soon_as_the_service_serves(start: Start) -> None:
    with start(MEDIAGEN_PRELOAD="sd15") as service:
        assert sd15(service).state == engine_pb2.ENGINE_STATE_READY
