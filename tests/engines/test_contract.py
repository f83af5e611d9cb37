"""What every home of engines promises: the fake, the one in this process, and real Triton pass the same tests."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio
from engines import toy
from engines.fake import FakeEngines

from server.engines.local import LocalEngines
from server.engines.port import EngineFault, EngineInputError, Engines, EngineTimeout, EngineUnavailable, Port, Spec
from server.engines.supervisor import EmbeddedTriton
from server.engines.triton import TritonEngines

pytestmark = pytest.mark.asyncio(loop_scope="session")

ABSENT = Spec("toy_absent", (Port("x", "float32", ("rows", 1)),), (Port("y", "float32", ("rows", 1)),), 1)
LONG = {"turns": np.array([20_000])}  # toy_spin works 0.5 s or more on these


@pytest_asyncio.fixture(loop_scope="session", params=["fake", "local", "triton"])
async def engines(request: pytest.FixtureRequest, repository: Path, triton: EmbeddedTriton) -> AsyncIterator[Engines]:
    """Each home with mix, words and picture loaded; the fake takes real time for `LONG` only by being held."""
    homes = {
        "fake": lambda: FakeEngines((*toy.SPECS, toy.PICKY), toy.COMPUTE),
        "local": lambda: LocalEngines(repository, (*toy.SPECS, toy.PICKY, ABSENT)),
        "triton": lambda: TritonEngines(triton.address, (*toy.SPECS, toy.PICKY, ABSENT)),
    }
    home: Engines = homes[request.param]()
    await asyncio.gather(*(home.load(spec.name) for spec in toy.SPECS))
    yield home
    await home.close()


def same(found: dict[str, npt.NDArray[Any]], expected: dict[str, npt.NDArray[Any]]) -> bool:
    """Equal names, dtypes, shapes, and values up to the order of fp32 sums."""
    return found.keys() == expected.keys() and all(
        found[name].dtype == value.dtype
        and found[name].shape == value.shape
        and np.allclose(found[name], value, rtol=1e-5, atol=1e-6)
        for name, value in expected.items()
    )


@pytest.mark.parametrize("spec", toy.SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("axes", [{"rows": 1}, {"height": 5, "width": 3, "tokens": 7}], ids=["one", "odd"])
async def test_an_engine_answers_what_its_reference_answers(engines: Engines, spec: Spec, axes: dict[str, int]) -> None:
    inputs = toy.example(spec, **axes)
    assert same(await engines.run(spec.name, inputs), toy.COMPUTE[spec.name](inputs))


async def test_as_many_rows_as_allowed_come_back_in_their_order(engines: Engines) -> None:
    inputs = toy.example(toy.MIX, rows=toy.MIX.max_rows)
    assert same(await engines.run(toy.MIX.name, inputs), toy.mix(inputs))


async def test_a_tensor_that_is_not_contiguous_is_understood(engines: Engines) -> None:
    inputs = toy.example(toy.MIX, height=4, width=4)
    inputs["sample"] = inputs["sample"].transpose(0, 1, 3, 2)
    assert same(await engines.run(toy.MIX.name, inputs), toy.mix(inputs))


async def test_answers_may_be_written_into_and_survive_the_next_call(engines: Engines) -> None:
    first, second = toy.example(toy.MIX, 1), toy.example(toy.MIX, 2)
    kept = await engines.run(toy.MIX.name, first)
    await engines.run(toy.MIX.name, second)
    assert same(kept, toy.mix(first))
    kept["prediction"] += 1
    assert same(await engines.run(toy.MIX.name, first), toy.mix(first))


async def test_concurrent_calls_keep_their_own_answers(engines: Engines) -> None:
    inputs = [toy.example(toy.MIX, seed, height=1 + seed % 5) for seed in range(40)]
    answers = await asyncio.gather(*(engines.run(toy.MIX.name, one) for one in inputs))
    assert all(same(answer, toy.mix(one)) for answer, one in zip(answers, inputs, strict=True))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sample": None}, "sample is missing"),
        ({"extra": np.zeros((2, 1), np.float32)}, "extra is not an input"),
        ({"timestep": np.zeros(2)}, "timestep is float64"),
        ({"timestep": np.zeros(3, np.float32)}, "timestep is float32\\[3\\]"),
        ({"sample": np.zeros((2, 9, 2, 2), np.float32)}, "sample is float32\\[2, 9, 2, 2\\]"),
    ],
    ids=["missing", "unknown", "dtype", "rows", "channels"],
)
async def test_tensors_that_do_not_fit_are_refused_by_name(
    engines: Engines, change: dict[str, npt.NDArray[Any] | None], named: str
) -> None:
    inputs = {**toy.example(toy.MIX), **change}
    with pytest.raises(EngineInputError, match=named):
        await engines.run(toy.MIX.name, {name: tensor for name, tensor in inputs.items() if tensor is not None})


async def test_more_rows_than_one_call_carries_are_refused(engines: Engines) -> None:
    with pytest.raises(EngineInputError, match="17 rows"):
        await engines.run(toy.MIX.name, toy.example(toy.MIX, rows=17))


async def test_an_engine_that_nobody_declared_is_refused_with_those_declared(engines: Engines) -> None:
    with pytest.raises(EngineInputError, match=r"toy_lost.*toy_mix"):
        await engines.run("toy_lost", {})
    with pytest.raises(EngineInputError, match=r"toy_lost.*toy_mix"):
        await engines.load("toy_lost")


async def test_an_unloaded_engine_is_unavailable_until_it_is_loaded_again(engines: Engines) -> None:
    inputs = toy.example(toy.WORDS)
    await engines.unload(toy.WORDS.name)
    assert toy.WORDS.name not in await engines.ready()
    assert await engines.answers()  # the home is there all the same
    with pytest.raises(EngineUnavailable, match="toy_words"):
        await engines.run(toy.WORDS.name, inputs)
    await engines.load(toy.WORDS.name)
    await engines.load(toy.WORDS.name)
    assert set(await engines.ready()) == {spec.name for spec in toy.SPECS}
    assert same(await engines.run(toy.WORDS.name, inputs), toy.words(inputs))


async def test_an_added_engine_serves_like_any_other_until_it_is_forgotten(engines: Engines, variants: Path) -> None:
    inputs, name = toy.example(toy.MIX), toy.OTHER_MIXES[0]
    for _ in range(2):
        engines.add(replace(toy.MIX, name=name), variants)
        engines.add(replace(toy.MIX, name=name), variants)
        with pytest.raises(EngineUnavailable, match=name):
            await engines.run(name, inputs)
        await engines.load(name)
        assert name in await engines.ready()
        assert same(await engines.run(name, inputs), toy.mix(inputs))
        assert name in await engines.usage()
        await engines.unload(name)
        engines.forget(name)
        engines.forget(name)
        assert name not in await engines.ready()
        with pytest.raises(EngineInputError, match=f"{name}.*toy_mix"):
            await engines.run(name, inputs)
    assert same(await engines.run(toy.MIX.name, inputs), toy.mix(inputs))


async def test_an_execution_that_fails_is_the_engines_fault_and_the_next_one_works(engines: Engines) -> None:
    await engines.load(toy.PICKY.name)
    with pytest.raises(EngineFault, match="toy_picky") as raised:
        await engines.run(toy.PICKY.name, toy.example(toy.PICKY, length=2))
    assert raised.type is EngineFault
    inputs = toy.example(toy.PICKY, length=3)
    assert same(await engines.run(toy.PICKY.name, inputs), toy.picky(inputs))
    await engines.unload(toy.PICKY.name)


async def test_an_execution_longer_than_its_timeout_ends_as_timeout_and_the_next_one_works(engines: Engines) -> None:
    held = hold(engines)
    with pytest.raises(EngineTimeout, match="toy_spin"):
        await engines.run(toy.SPIN.name, LONG, timeout=0.1)
    held.set()
    inputs = toy.example(toy.SPIN)
    assert same(await engines.run(toy.SPIN.name, inputs, timeout=30), toy.spin(inputs))


async def test_a_cancelled_call_ends_at_once_and_the_next_one_works(engines: Engines) -> None:
    held = hold(engines)
    call = asyncio.create_task(engines.run(toy.SPIN.name, LONG))
    waiting = asyncio.create_task(engines.run(toy.SPIN.name, LONG))
    done, _ = await asyncio.wait((call, waiting), timeout=0.1)
    assert not done
    for task in (call, waiting):
        task.cancel()
    async with asyncio.timeout(0.3):
        results = await asyncio.gather(call, waiting, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2
    held.set()
    inputs = toy.example(toy.SPIN)
    assert same(await engines.run(toy.SPIN.name, inputs, timeout=30), toy.spin(inputs))


async def test_usage_counts_executions_and_the_time_inside_them(engines: Engines) -> None:
    before = (await engines.usage())[toy.SPIN.name]
    for _ in range(3):
        await engines.run(toy.SPIN.name, {"turns": np.array([300, 1])})
    after = (await engines.usage())[toy.SPIN.name]
    assert after.executions - before.executions == 3
    assert 0.001 < after.seconds - before.seconds < 10


async def test_an_engine_without_files_cannot_be_loaded(repository: Path, triton: EmbeddedTriton) -> None:
    for home in (LocalEngines(repository, (ABSENT,)), TritonEngines(triton.address, (ABSENT,))):
        with pytest.raises(EngineUnavailable, match="toy_absent"):
            await home.load(ABSENT.name)
        assert await home.ready() == ()
        await home.close()


@pytest.mark.parametrize("spec", toy.SPECS, ids=lambda spec: spec.name)
async def test_triton_and_this_process_compute_the_same_bits(
    repository: Path, triton: EmbeddedTriton, spec: Spec
) -> None:
    local, remote = LocalEngines(repository, (spec,)), TritonEngines(triton.address, (spec,))
    await asyncio.gather(local.load(spec.name), remote.load(spec.name))
    inputs = toy.example(spec, height=64, width=48, tokens=77)
    for name, here in (await local.run(spec.name, inputs)).items():
        there = (await remote.run(spec.name, inputs))[name]
        assert here.tobytes() == there.tobytes()
    await asyncio.gather(local.close(), remote.close())


def hold(engines: Engines) -> asyncio.Event:
    """Real engines need their time for `LONG`; the fake is held until the event is set."""
    if isinstance(engines, FakeEngines):
        engines.go.clear()
        return engines.go
    return asyncio.Event()
