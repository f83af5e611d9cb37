"""Kept engines are ready only once proved since they were last in doubt, and come back from whatever took them away."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from engines import toy
from engines.fake import FakeEngines

from server.engines import kept
from server.engines.golden import GoldenMismatch
from server.engines.kept import KeptEngines
from server.engines.port import EngineFault, EngineInputError, EngineTimeout, EngineUnavailable, Tensors

INPUTS = toy.example(toy.MIX)


class Engines(FakeEngines):
    """`mix` and `words`; `mix` answers nonsense while it is `broken`."""

    def __init__(self) -> None:
        self.broken = False
        super().__init__(
            (toy.MIX, toy.WORDS),
            {toy.MIX.name: self._mix, **{name: toy.COMPUTE[name] for name in (toy.WORDS.name, *toy.OTHER_MIXES)}},
        )

    def _mix(self, inputs: Tensors) -> dict[str, np.ndarray]:
        answer = toy.mix(inputs)
        return {name: np.zeros_like(value) for name, value in answer.items()} if self.broken else answer

    async def executions(self) -> int:
        """Of `mix`, since it was loaded."""
        return (await self.usage())[toy.MIX.name].executions


@pytest.fixture
def engines() -> Engines:
    """Nothing is loaded."""
    return Engines()


@pytest_asyncio.fixture
async def keeper(engines: Engines, repository: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KeptEngines]:
    """Nothing is loaded; it looks often."""
    monkeypatch.setattr(kept, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(kept, "_PAUSES", (0.01, 0.02))
    home = KeptEngines(engines, repository, (toy.MIX, toy.WORDS))
    yield home
    engines.go.set()
    await home.close()


async def until_ready(keeper: KeptEngines, *names: str) -> None:
    async with asyncio.timeout(5):
        while set(await keeper.ready()) != set(names):  # noqa: ASYNC110  (it tells nobody)
            await asyncio.sleep(0.01)


async def test_an_engine_that_is_loaded_and_not_yet_proved_is_not_ready(engines: Engines, keeper: KeptEngines) -> None:
    engines.go.clear()
    loading = asyncio.create_task(keeper.load(toy.MIX.name))
    await engines.began.wait()
    assert await engines.ready() == (toy.MIX.name,)
    assert await keeper.ready() == ()
    engines.go.set()
    await loading
    assert await keeper.ready() == (toy.MIX.name,)


async def test_an_engine_that_computes_wrongly_is_refused(engines: Engines, keeper: KeptEngines) -> None:
    engines.broken = True
    with pytest.raises(GoldenMismatch, match="toy_mix computes wrongly"):
        await keeper.load(toy.MIX.name)
    assert await keeper.ready() == ()
    with pytest.raises(EngineInputError, match="toy_lost"):
        await keeper.load("toy_lost")


async def test_an_engine_that_its_home_lost_is_loaded_and_proved_before_any_call_reaches_it(
    engines: Engines, keeper: KeptEngines
) -> None:
    await keeper.load(toy.MIX.name)
    engines.go.clear()
    engines.began.clear()
    await engines.unload(toy.MIX.name)
    async with asyncio.timeout(5):
        await engines.began.wait()  # its golden tensors, after it was loaded again
    assert await engines.ready() == (toy.MIX.name,)
    assert await keeper.ready() == ()
    with pytest.raises(EngineUnavailable, match="toy_mix was lost and is being loaded again"):
        await keeper.run(toy.MIX.name, INPUTS)
    engines.go.set()
    await until_ready(keeper, toy.MIX.name)
    assert (await keeper.run(toy.MIX.name, INPUTS)).keys() == {"prediction"}


async def test_an_engine_that_failed_a_call_and_proves_itself_is_not_loaded_again(
    engines: Engines, keeper: KeptEngines
) -> None:
    await keeper.load(toy.MIX.name)
    engines.fail(toy.MIX.name, EngineUnavailable("the connection broke"))
    with pytest.raises(EngineUnavailable, match="connection"):
        await keeper.run(toy.MIX.name, INPUTS)
    assert await keeper.ready() == ()
    await until_ready(keeper, toy.MIX.name)
    assert await engines.executions() == 2  # both times its golden tensors; loading would have begun anew


async def test_an_engine_that_cannot_prove_itself_is_loaded_again_as_often_as_it_takes(
    engines: Engines, keeper: KeptEngines
) -> None:
    await keeper.load(toy.MIX.name)
    for _ in range(6):  # the call, then two proofs at each attempt: as it is, and loaded again
        engines.fail(toy.MIX.name, EngineUnavailable("the process died"))
    with pytest.raises(EngineUnavailable, match="died"):
        await keeper.run(toy.MIX.name, INPUTS)
    await until_ready(keeper, toy.MIX.name)
    assert await engines.executions() == 1


async def test_an_engine_that_came_back_computing_wrongly_is_not_ready_until_it_computes_rightly(
    engines: Engines, keeper: KeptEngines
) -> None:
    await asyncio.gather(keeper.load(toy.MIX.name), keeper.load(toy.WORDS.name))
    engines.broken = True
    await engines.unload(toy.MIX.name)
    await until_ready(keeper, toy.WORDS.name)
    for _ in range(3):
        engines.began.clear()
        async with asyncio.timeout(5):
            await engines.began.wait()
        assert await keeper.ready() == (toy.WORDS.name,)
    engines.broken = False
    await until_ready(keeper, toy.MIX.name, toy.WORDS.name)


async def test_an_engine_that_hung_is_in_doubt_until_it_answers(engines: Engines, keeper: KeptEngines) -> None:
    await keeper.load(toy.MIX.name)
    engines.go.clear()
    with pytest.raises(EngineTimeout):
        await keeper.run(toy.MIX.name, INPUTS, timeout=0.05)
    assert await keeper.ready() == ()
    engines.go.set()
    await until_ready(keeper, toy.MIX.name)


async def test_a_fault_of_one_execution_puts_nothing_in_doubt(engines: Engines, keeper: KeptEngines) -> None:
    await keeper.load(toy.MIX.name)
    engines.fail(toy.MIX.name, EngineFault("these tensors have no answer"))
    with pytest.raises(EngineFault, match="no answer"):
        await keeper.run(toy.MIX.name, INPUTS)
    assert await keeper.ready() == (toy.MIX.name,)


async def test_an_unloaded_engine_is_not_brought_back(engines: Engines, keeper: KeptEngines) -> None:
    await asyncio.gather(keeper.load(toy.MIX.name), keeper.load(toy.WORDS.name))
    await keeper.unload(toy.WORDS.name)
    await engines.unload(toy.MIX.name)
    await until_ready(keeper)
    await until_ready(keeper, toy.MIX.name)
    assert await engines.ready() == (toy.MIX.name,)


async def test_an_engine_unloaded_while_it_is_brought_back_has_proved_nothing_for_its_next_load(
    engines: Engines, keeper: KeptEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_LOOK_SECONDS", 60.0)  # nobody looks again
    await keeper.load(toy.MIX.name)
    engines.fail(toy.MIX.name, EngineUnavailable("the connection broke"))
    with pytest.raises(EngineUnavailable):
        await keeper.run(toy.MIX.name, INPUTS)
    engines.go.clear()
    engines.began.clear()
    async with asyncio.timeout(5):
        await engines.began.wait()  # its golden tensors
    leaving = asyncio.create_task(keeper.unload(toy.MIX.name))
    await asyncio.sleep(0)
    engines.go.set()
    await leaving
    await engines.load(toy.MIX.name)
    assert await keeper.ready() == ()


async def test_a_forgotten_engine_leaves_the_others_watched(
    engines: Engines, keeper: KeptEngines, variants: Path
) -> None:
    other = replace(toy.MIX, name=toy.OTHER_MIXES[0])
    await keeper.load(toy.WORDS.name)
    for _ in range(3):
        keeper.add(other, variants)
        await keeper.load(other.name)
        engines.fail(other.name, EngineUnavailable("it died"))
        with pytest.raises(EngineUnavailable):
            await keeper.run(other.name, INPUTS)
        await keeper.unload(other.name)
        keeper.forget(other.name)
    assert keeper._kept.keys() == {toy.MIX.name, toy.WORDS.name}
    await engines.unload(toy.WORDS.name)
    await until_ready(keeper)
    await until_ready(keeper, toy.WORDS.name)
