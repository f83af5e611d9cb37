"""Engines come at their first use, stay, and go for others by their last use; nothing in use goes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytest_asyncio
from engines import toy
from engines.fake import FakeEngines

from server.engines import kept, on_demand
from server.engines.kept import KeptEngines
from server.engines.on_demand import OnDemandEngines
from server.engines.port import EngineInputError, EngineNoRoom, EngineUnavailable, EngineUnfit, Spec, State

SPECS = (toy.MIX, toy.WORDS, toy.SPIN)
MIX, WORDS, SPIN = (spec.name for spec in SPECS)
MEMORY = {MIX: 10, WORDS: 10, SPIN: 20}


class Engines(FakeEngines):
    """Remembers what was loaded and unloaded; loading waits for `may_load`, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__(SPECS, toy.COMPUTE)
        self.story: list[str] = []
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.broken: set[str] = set()
        self.there = True

    async def load(self, engine: str) -> None:
        await self.may_load.wait()
        self.story.append(f"+{engine}")
        if engine in self.broken or not self.there:
            raise EngineUnavailable(f"{engine} is broken")
        await super().load(engine)

    async def unload(self, engine: str) -> None:
        self.story.append(f"-{engine}")
        await super().unload(engine)

    async def answers(self) -> bool:
        return self.there


@pytest.fixture
def engines() -> Engines:
    """Nothing is loaded."""
    return Engines()


@pytest_asyncio.fixture
async def home(engines: Engines, repository: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OnDemandEngines]:
    """With room for two small engines, or the large one. An engine is idle as soon as its execution has ended."""
    monkeypatch.setattr(kept, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(on_demand, "_LINGER_SECONDS", 0.0)
    monkeypatch.setattr(on_demand, "_LOOK_SECONDS", 0.001)
    home = OnDemandEngines(KeptEngines(engines, repository, SPECS), MEMORY, budget=20)
    yield home
    engines.go.set()
    await home.close()


async def use(home: OnDemandEngines, spec: Spec) -> None:
    """One execution, which is right."""
    inputs = toy.example(spec)
    for name, expected in toy.COMPUTE[spec.name](inputs).items():
        assert np.allclose((await home.run(spec.name, inputs))[name], expected, rtol=1e-5)


async def states(home: OnDemandEngines) -> dict[str, State]:
    return {name: condition.state for name, condition in (await home.conditions()).items()}


async def until(true: Callable[[], bool]) -> None:
    """What happens in other tasks, which tell nobody."""
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_the_first_use_loads_and_proves_and_the_second_does_not(engines: Engines, home: OnDemandEngines) -> None:
    await use(home, toy.MIX)
    await use(home, toy.MIX)
    assert engines.story == [f"+{MIX}"]
    assert len(engines.calls) == 3  # one of them its golden tensors
    assert await states(home) == {MIX: State.READY, WORDS: State.UNLOADED, SPIN: State.UNLOADED}


async def test_first_uses_at_the_same_time_load_once(engines: Engines, home: OnDemandEngines) -> None:
    engines.may_load.clear()
    uses = [asyncio.create_task(use(home, toy.MIX)) for _ in range(5)]
    await until(lambda: home._uses[MIX] == 5)
    assert (await states(home))[MIX] is State.LOADING
    engines.may_load.set()
    await asyncio.gather(*uses)
    assert engines.story == [f"+{MIX}"]


async def test_who_gives_up_waiting_leaves_the_load_to_the_others_and_to_the_next(
    engines: Engines, home: OnDemandEngines
) -> None:
    engines.may_load.clear()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(use(home, toy.MIX), 0.02)
    engines.may_load.set()
    await use(home, toy.MIX)
    assert engines.story == [f"+{MIX}"]


async def test_the_time_of_an_execution_begins_when_its_engine_is_loaded(
    engines: Engines, home: OnDemandEngines
) -> None:
    engines.may_load.clear()
    call = asyncio.create_task(home.run(MIX, toy.example(toy.MIX), timeout=0.1))
    await asyncio.wait((call,), timeout=0.2)
    engines.may_load.set()
    assert (await call).keys() == {"prediction"}


async def test_the_least_recently_used_one_goes(
    engines: Engines, home: OnDemandEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(home._memory, SPIN, 10)
    for spec in (toy.MIX, toy.WORDS, toy.MIX, toy.SPIN, toy.WORDS):
        await use(home, spec)
    assert engines.story == [f"+{MIX}", f"+{WORDS}", f"-{WORDS}", f"+{SPIN}", f"-{MIX}", f"+{WORDS}"]


async def test_as_many_go_as_it_takes_and_no_more(engines: Engines, home: OnDemandEngines) -> None:
    for spec in (toy.MIX, toy.WORDS, toy.SPIN, toy.WORDS, toy.MIX):
        await use(home, spec)
    assert engines.story[2:] == [f"-{MIX}", f"-{WORDS}", f"+{SPIN}", f"-{SPIN}", f"+{WORDS}", f"+{MIX}"]


async def test_what_is_executing_or_waits_to_is_not_unloaded(engines: Engines, home: OnDemandEngines) -> None:
    await asyncio.gather(use(home, toy.MIX), use(home, toy.WORDS))
    engines.go.clear()
    engines.began.clear()
    held = [asyncio.create_task(use(home, toy.MIX)) for _ in range(2)]  # one executes, one waits
    await engines.began.wait()
    large = asyncio.create_task(use(home, toy.SPIN))
    await until(home._queue.locked)
    await asyncio.wait((large,), timeout=0.05)
    assert engines.story == [f"+{MIX}", f"+{WORDS}"]  # the idle one alone would not be enough, so it stays too
    engines.go.set()
    await asyncio.gather(*held, large)
    assert set(engines.story[2:4]) == {f"-{MIX}", f"-{WORDS}"}


async def test_who_waits_for_room_takes_none_and_who_was_lost_keeps_it(engines: Engines, home: OnDemandEngines) -> None:
    await use(home, toy.MIX)
    engines.go.clear()
    engines.began.clear()
    held = asyncio.create_task(use(home, toy.MIX))
    await engines.began.wait()
    large = asyncio.create_task(use(home, toy.SPIN))
    await until(home._queue.locked)
    assert (await states(home))[SPIN] is State.LOADING
    engines.may_load.clear()
    await engines.unload(MIX)
    assert {name: condition.taken for name, condition in (await home.conditions()).items()} == {
        MIX: 10, WORDS: 0, SPIN: 0,
    }  # fmt: skip
    engines.may_load.set()
    engines.go.set()
    await asyncio.gather(held, large)


async def test_between_two_steps_an_engine_is_in_use(
    engines: Engines, home: OnDemandEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_demand, "_LINGER_SECONDS", 60.0)
    monkeypatch.setattr(on_demand, "_ROOM_SECONDS", 0.05)
    await use(home, toy.MIX)
    with pytest.raises(EngineNoRoom, match=r"toy_spin needs .* did not become idle within"):
        await use(home, toy.SPIN)
    monkeypatch.setattr(on_demand, "_LINGER_SECONDS", 0.0)
    await use(home, toy.SPIN)


async def test_a_small_engine_that_has_room_does_not_wait_behind_a_large_one(
    engines: Engines, home: OnDemandEngines
) -> None:
    await use(home, toy.MIX)
    engines.go.clear()
    held = asyncio.create_task(use(home, toy.MIX))
    large = asyncio.create_task(use(home, toy.SPIN))
    await until(home._queue.locked)
    engines.go.set()
    await use(home, toy.WORDS)
    await asyncio.gather(held, large)


async def test_an_engine_that_does_not_fit_alone_is_refused_with_what_to_do(engines: Engines, repository: Path) -> None:
    home = OnDemandEngines(KeptEngines(engines, repository, SPECS), MEMORY, budget=15)
    with pytest.raises(EngineNoRoom, match="set MEDIAGEN_ENGINE_MEMORY to more") as raised:
        await use(home, toy.SPIN)
    assert raised.value.retry_seconds >= 10
    await use(home, toy.MIX)
    assert engines.story == [f"+{MIX}"]
    await home.close()


async def test_a_failed_load_gives_its_room_back_harms_no_other_and_is_not_tried_at_every_call(
    engines: Engines, home: OnDemandEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_demand, "_PAUSES", (60.0,))
    await use(home, toy.MIX)
    engines.broken.add(WORDS)
    for _ in range(3):
        with pytest.raises(EngineUnavailable, match="toy_words cannot be loaded: toy_words is broken") as raised:
            await use(home, toy.WORDS)
        assert 0 < raised.value.retry_seconds <= 60
    assert engines.story == [f"+{MIX}", f"+{WORDS}", f"-{WORDS}"]
    assert await states(home) == {MIX: State.READY, WORDS: State.LOST, SPIN: State.UNLOADED}
    assert await home.healthy()  # the other one serves
    engines.broken.clear()
    later = time.monotonic() + 60
    monkeypatch.setattr(on_demand, "time", SimpleNamespace(monotonic=lambda: later))
    await use(home, toy.WORDS)
    assert (await states(home))[WORDS] is State.READY


async def test_an_engine_that_computes_wrongly_is_unavailable_and_takes_no_memory(
    engines: Engines, home: OnDemandEngines
) -> None:
    engines._states[WORDS].compute = lambda inputs: {"hidden_states": np.zeros((*inputs["input_ids"].shape, 3))}
    with pytest.raises(EngineUnavailable, match=r"toy_words cannot be loaded: .*hidden_states"):
        await use(home, toy.WORDS)
    assert await engines.ready() == ()
    await use(home, toy.SPIN)  # there is room for all of it


async def test_an_engine_whose_weights_give_no_answer_is_told_as_that_every_time(
    engines: Engines, home: OnDemandEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def load(engine: str) -> None:
        engines.story.append(f"+{engine}")
        raise EngineUnfit("sample is not finite")

    monkeypatch.setattr(engines, "load", load)
    for _ in range(2):
        with pytest.raises(EngineUnfit, match="toy_mix cannot be loaded: sample is not finite"):
            await use(home, toy.MIX)
    assert engines.story == [f"+{MIX}", f"-{MIX}"]


async def test_a_load_that_fails_because_nobody_is_there_is_tried_at_the_next_call(
    engines: Engines, home: OnDemandEngines
) -> None:
    engines.there = False
    with pytest.raises(EngineUnavailable):
        await use(home, toy.MIX)
    assert not await home.healthy()
    engines.there = True
    await use(home, toy.MIX)


async def test_health_is_that_nothing_loaded_is_lost(engines: Engines, home: OnDemandEngines) -> None:
    assert await home.healthy()
    await asyncio.gather(use(home, toy.MIX), use(home, toy.WORDS))
    engines.may_load.clear()
    await engines.unload(MIX)
    assert not await home.healthy()
    assert await states(home) == {MIX: State.LOST, WORDS: State.READY, SPIN: State.UNLOADED}
    engines.may_load.set()
    async with asyncio.timeout(5):
        while not await home.healthy():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (await states(home))[MIX] is State.READY


async def test_an_engine_that_is_let_go_while_health_is_looked_at_is_not_lost(
    engines: Engines, home: OnDemandEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    await use(home, toy.MIX)

    async def answers() -> bool:
        await home.unload(MIX)
        return True

    monkeypatch.setattr(engines, "answers", answers)
    assert await home.healthy()


async def test_an_engine_unloaded_by_hand_comes_at_its_next_use(engines: Engines, home: OnDemandEngines) -> None:
    await use(home, toy.MIX)
    await home.unload(MIX)
    assert await home.ready() == ()
    assert await home.healthy()
    await use(home, toy.MIX)
    assert engines.story == [f"+{MIX}", f"-{MIX}", f"+{MIX}"]


async def test_an_engine_that_nobody_declared_is_refused(home: OnDemandEngines) -> None:
    with pytest.raises(EngineInputError, match="toy_lost"):
        await home.load("toy_lost")
    with pytest.raises(EngineInputError, match="toy_lost"):
        await home.unload("toy_lost")
    with pytest.raises(EngineInputError, match="toy_lost"):
        await home.run("toy_lost", {})


@pytest.fixture
def others(home: OnDemandEngines, variants: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Spec, Spec]:
    """Two engines to be added, which weigh 10 each."""
    monkeypatch.setattr(on_demand, "estimate", lambda repository, engine: 10)
    one, other = (replace(toy.MIX, name=name) for name in toy.OTHER_MIXES)
    return one, other


async def test_an_added_engine_is_forgotten_when_it_makes_room(
    engines: Engines, home: OnDemandEngines, others: tuple[Spec, Spec], variants: Path
) -> None:
    for spec in others:
        home.add(spec, variants)
        await use(home, spec)
    assert tuple(home.idle) == toy.OTHER_MIXES
    await use(home, toy.WORDS)
    assert engines.story[2:] == [f"-{others[0].name}", f"+{WORDS}"]
    assert home.idle == [others[1].name]
    assert others[0].name not in await states(home)
    with pytest.raises(EngineInputError, match=others[0].name):
        await use(home, others[0])


async def test_what_is_held_makes_room_and_is_not_forgotten(
    engines: Engines, home: OnDemandEngines, others: tuple[Spec, Spec], variants: Path
) -> None:
    one, _ = others
    with home.held(one.name):
        home.add(one, variants)
        for _ in range(2):
            await use(home, one)
            assert (home.needed, home.idle) == ({one.name}, [])
            await use(home, toy.SPIN)
            assert not home.is_loaded(one.name)
            assert home.needed == {one.name}
    assert engines.story[:4] == [f"+{one.name}", f"-{one.name}", f"+{SPIN}", f"-{SPIN}"]
    assert not home._added
    assert not home._holds
    assert not home._uses


async def test_what_idles_leaves_when_it_is_told_to_and_what_is_needed_does_not(
    engines: Engines, home: OnDemandEngines, others: tuple[Spec, Spec], variants: Path
) -> None:
    one, other = others
    for spec in others:
        home.add(spec, variants)
        await use(home, spec)
    with home.held(one.name):
        assert (home.needed, home.idle) == ({one.name}, [other.name])
        await asyncio.gather(home.make_leave((one.name, other.name, MIX)), home.make_leave((other.name,)))
        assert engines.story[2:] == [f"-{other.name}"]
        assert home._added == {one.name}
        assert await home.ready() == (one.name,)


async def test_an_added_engine_that_cannot_be_loaded_is_forgotten_after_its_pause(
    engines: Engines, home: OnDemandEngines, others: tuple[Spec, Spec], variants: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = others
    home.add(one, variants)
    engines.broken.add(one.name)
    with pytest.raises(EngineUnavailable):
        await use(home, one)
    assert one.name in home._added
    monkeypatch.setattr(on_demand, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 60))
    home.add(other, variants)
    await use(home, other)
    assert home._added == {other.name}
    assert not home._failures


async def test_an_added_engine_that_is_lost_takes_nobodys_health(
    engines: Engines, home: OnDemandEngines, others: tuple[Spec, Spec], variants: Path
) -> None:
    home.add(others[0], variants)
    await use(home, others[0])
    engines.may_load.clear()
    await engines.unload(others[0].name)
    assert await home.healthy()
    engines.may_load.set()
