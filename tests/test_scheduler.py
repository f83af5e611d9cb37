"""Which executions share a call, and that nobody gets anybody else's rows."""

import asyncio
import time

import numpy as np
import pytest
from engines.fake import FakeEngines

from server.engines.port import EngineInputError, EngineUnavailable, Port, Spec
from server.meter import Shape
from server.scheduler import StepScheduler

DOUBLE = Spec(
    "double",
    inputs=(Port("x", "float32", ("rows", "width")),),
    outputs=(Port("y", "float32", ("rows", "width")),),
    max_rows=4,
)


@pytest.fixture
async def engines() -> FakeEngines:
    fake = FakeEngines([DOUBLE], {"double": lambda inputs: {"y": inputs["x"] * 2}})
    await fake.load("double")
    return fake


def rows(value: float, count: int = 1, width: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.full((count, width), value, np.float32)}


def batches(engines: FakeEngines) -> list[int]:
    return [len(inputs["x"]) for _, inputs in engines.calls]


async def test_what_is_ready_together_shares_a_call_and_everyone_gets_their_own_rows(engines: FakeEngines) -> None:
    scheduler = StepScheduler(engines)
    answers = await asyncio.gather(*(scheduler.run(DOUBLE, rows(value)) for value in (1, 2, 3)))
    assert batches(engines) == [3]
    assert [answer["y"].tolist() for answer in answers] == [[[2, 2, 2]], [[4, 4, 4]], [[6, 6, 6]]]


async def test_a_call_never_has_more_rows_than_the_engine_takes(engines: FakeEngines) -> None:
    scheduler = StepScheduler(engines)
    await asyncio.gather(*(scheduler.run(DOUBLE, rows(value, count=2)) for value in range(5)))
    assert batches(engines) == [4, 4, 2]


async def test_unlike_shapes_run_apart_and_do_not_part_the_others(engines: FakeEngines) -> None:
    scheduler = StepScheduler(engines)
    widths = (3, 5, 3, 5)
    answers = await asyncio.gather(*(scheduler.run(DOUBLE, rows(1, width=width)) for width in widths))
    assert batches(engines) == [2, 2]
    assert [answer["y"].shape[1] for answer in answers] == list(widths)


async def test_what_becomes_ready_during_a_call_forms_the_next_one(engines: FakeEngines) -> None:
    scheduler = StepScheduler(engines)
    engines.go.clear()
    first = asyncio.create_task(scheduler.run(DOUBLE, rows(1)))
    await engines.began.wait()
    others = [asyncio.create_task(scheduler.run(DOUBLE, rows(value))) for value in (2, 3)]
    await asyncio.sleep(0)
    engines.go.set()
    await asyncio.gather(first, *others)
    assert batches(engines) == [1, 2]


async def test_a_cancelled_execution_leaves_the_queue_and_hurts_nobody(engines: FakeEngines) -> None:
    scheduler = StepScheduler(engines)
    engines.go.clear()
    running = asyncio.create_task(scheduler.run(DOUBLE, rows(1)))
    await engines.began.wait()
    waiting = [asyncio.create_task(scheduler.run(DOUBLE, rows(value))) for value in (2, 3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    engines.go.set()
    assert (await running)["y"][0, 0] == 2
    assert (await waiting[1])["y"][0, 0] == 6
    assert batches(engines) == [1, 1]


async def test_a_caller_that_left_during_a_call_does_not_keep_its_neighbour_from_its_rows(engines: FakeEngines) -> None:
    scheduler = StepScheduler(engines)
    engines.go.clear()
    leaving, staying = (asyncio.create_task(scheduler.run(DOUBLE, rows(value))) for value in (1, 2))
    await engines.began.wait()
    leaving.cancel()
    engines.go.set()
    assert (await staying)["y"].tolist() == [[4, 4, 4]]


async def test_a_fault_reaches_everyone_in_the_call_and_the_next_call_works(engines: FakeEngines) -> None:
    scheduler = StepScheduler(engines)
    engines.fail("double", EngineUnavailable("gone"))
    answers = await asyncio.gather(*(scheduler.run(DOUBLE, rows(v)) for v in (1, 2)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [EngineUnavailable, EngineUnavailable]
    assert (await scheduler.run(DOUBLE, rows(3)))["y"][0, 0] == 6


async def test_an_engine_that_hangs_gets_its_time_for_each_row_and_the_next_call_works(engines: FakeEngines) -> None:
    scheduler = StepScheduler(engines, row_seconds=lambda engine: 0.02)
    engines.go.clear()
    calls = (scheduler.run(DOUBLE, rows(value, count=2)) for value in (1, 2))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(answer) for answer in answers] == ["double did not answer within 0.08 s"] * 2
    engines.go.set()
    assert (await scheduler.run(DOUBLE, rows(3)))["y"][0, 0] == 6


async def test_tensors_that_do_not_fit_are_refused_before_they_wait(engines: FakeEngines) -> None:
    with pytest.raises(EngineInputError, match="x is missing"):
        await StepScheduler(engines).run(DOUBLE, {})
    assert engines.calls == []


class Unloaded(FakeEngines):
    """Loading waits for `may_load`, and fails where there is a reason."""

    def __init__(self) -> None:
        super().__init__([DOUBLE], {"double": lambda inputs: {"y": inputs["x"] * 2}})
        self.loads = 0
        self.may_load = asyncio.Event()
        self.reason: EngineUnavailable | None = None

    async def load(self, engine: str) -> None:
        self.loads += 1
        await self.may_load.wait()
        if self.reason is not None:
            raise self.reason
        await super().load(engine)


async def test_while_an_engine_loads_who_comes_joins_who_leaves_is_left_out_and_no_time_is_counted() -> None:
    engines = Unloaded()
    scheduler = StepScheduler(engines, row_seconds=lambda engine: 0.05)
    calls = [asyncio.create_task(scheduler.run(DOUBLE, rows(value))) for value in (1, 2)]
    await asyncio.sleep(0.1)
    calls.append(asyncio.create_task(scheduler.run(DOUBLE, rows(3))))
    calls[0].cancel()
    await asyncio.sleep(0)
    engines.may_load.set()
    answers = await asyncio.gather(*calls[1:])
    assert [answer["y"][0, 0] for answer in answers] == [4, 6]
    assert batches(engines) == [2]


async def test_a_load_that_fails_is_told_to_all_who_wait_and_the_next_call_tries_again() -> None:
    engines = Unloaded()
    engines.reason = EngineUnavailable("no memory")
    engines.may_load.set()
    scheduler = StepScheduler(engines)
    answers = await asyncio.gather(*(scheduler.run(DOUBLE, rows(v)) for v in (1, 2)), return_exceptions=True)
    assert answers == [engines.reason] * 2
    assert engines.loads == 1
    engines.reason = None
    assert (await scheduler.run(DOUBLE, rows(3)))["y"][0, 0] == 6


async def test_every_call_is_measured_by_its_rows_and_their_size_and_a_failed_one_is_not(engines: FakeEngines) -> None:
    scheduler = StepScheduler(engines)
    engines.fail("double", EngineUnavailable("gone"))
    with pytest.raises(EngineUnavailable):
        await scheduler.run(DOUBLE, rows(1, width=3))
    assert scheduler.meter.seconds("double", Shape(1, 3)) is None
    begin = time.perf_counter()
    await asyncio.gather(*(scheduler.run(DOUBLE, rows(value, count=2, width=5)) for value in (1, 2)))
    elapsed = time.perf_counter() - begin
    seconds = scheduler.meter.seconds("double", Shape(4, 5))
    assert seconds is not None
    assert 0 < seconds < elapsed
    assert scheduler.meter.seconds("double", Shape(1, 5)) == pytest.approx(seconds / 4), "one shape has been seen"
