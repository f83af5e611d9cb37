"""Who holds variants has them loaded; many share one build and one load; who gives up leaves it to the others."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HANG_SECONDS
from engines.fake import FakeEngines

from server import variants as at_run_time
from server.adapters.weights import Part, Variant
from server.builder.client import Built
from server.builder.faults import BuilderAway, NoDisk, PartUnfit, TooManyAtOnce
from server.engines import on_demand
from server.engines.on_demand import OnDemandEngines
from server.engines.port import Array, EngineUnavailable, EngineUnfit, Port, Spec, Tensors
from server.scheduler import StepScheduler
from server.variants import Variants, pristine

PLAIN = Spec("plain", (Port("x", "float32", ("rows",)),), (Port("y", "float32", ("rows",)),), 4)
ONE, TWO, THREE = (Variant(PLAIN, (Part("lora", digit * 64, frozenset({"unet"})),)) for digit in "123")
INPUTS = {"x": np.ones(1, np.float32)}


@dataclass
class Shop:
    """Variants over fakes of what is asked, the plain engine included; a variant multiplies by its own number."""

    engines: FakeEngines
    home: OnDemandEngines
    scheduler: StepScheduler
    variants: Variants
    folder: Path  # of the variants
    builds: list[tuple[str, Collection[str]]] = field(default_factory=list)
    may_build: asyncio.Event = field(default_factory=asyncio.Event)
    faults: list[Exception] = field(default_factory=list)
    places: int = 1000  # on disk

    async def ensure(self, variant: Variant, keep: Collection[str], idle: Sequence[str]) -> Built:
        """As the builder does, with folders for bytes."""
        name = variant.spec.name
        self.builds.append((name, keep))
        await self.may_build.wait()
        if self.faults:
            raise self.faults.pop(0)
        built = not (self.folder / name).is_dir()
        (self.folder / name).mkdir(exist_ok=True)
        missing = len(self.on_disk) - self.places
        gone = sorted(self.on_disk - {name, *keep, *idle})[: max(0, missing)]
        for other in gone:
            (self.folder / other).rmdir()
        leave = tuple(other for other in idle if other not in keep)[: max(0, missing - len(gone))]
        if missing > len(gone) + len(leave):
            (self.folder / name).rmdir()
            raise NoDisk("others are in use")
        return Built(built, 0.5 if built else 0.0, leave)

    @property
    def on_disk(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}

    async def draw(self, variant: Variant) -> float:
        async with self.variants.held({PLAIN.name: variant}) as held:
            return float((await held.run(PLAIN, INPUTS))["y"][0])


def times(factor: int) -> Any:
    def compute(inputs: Tensors) -> dict[str, Array]:
        return {"y": inputs["x"] * np.float32(factor)}

    return compute


@pytest.fixture
async def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shop]:
    """Room for two networks; each idle at once."""
    monkeypatch.setattr(on_demand, "_LINGER_SECONDS", 0.0)
    monkeypatch.setattr(on_demand, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(on_demand, "estimate", lambda repository, engine: 10)
    answers = {variant.spec.name: times(number) for number, variant in ((2, ONE), (3, TWO), (4, THREE))}
    engines = FakeEngines([PLAIN], {PLAIN.name: times(1), **answers})
    home = OnDemandEngines(engines, {PLAIN.name: 10}, budget=20)
    scheduler = StepScheduler(home)
    shop: Shop
    variants = Variants(home, lambda *wish: shop.ensure(*wish), tmp_path, scheduler.run_as)
    shop = Shop(engines, home, scheduler, variants, tmp_path)
    shop.may_build.set()
    yield shop
    await variants.close()
    await home.close()


async def test_a_request_without_variants_runs_the_plain_network(shop: Shop) -> None:
    async with shop.variants.held({}) as held:
        assert (await held.run(PLAIN, INPUTS))["y"] == 1
        assert held.made == ()
    assert shop.builds == []


async def test_a_variant_is_built_then_on_disk_then_in_memory_as_it_is_told(shop: Shop) -> None:
    sources = []
    for variant in (ONE, ONE, TWO, THREE, ONE):
        async with shop.variants.held({PLAIN.name: variant}) as held:
            (made,) = held.made
            await held.run(PLAIN, INPUTS)
        sources.append(made.source)
        assert (made.model, made.graph) == (variant.spec.name, PLAIN.name)
        assert (made.build_seconds > 0) == (made.source == "built")
        assert (made.load_seconds > 0) == (made.source != "memory")
    assert sources == ["built", "memory", "built", "built", "disk"]


async def test_one_then_another_then_the_first_and_none_are_never_mixed_up(shop: Shop) -> None:
    assert [await shop.draw(variant) for variant in (ONE, TWO, ONE, THREE, TWO)] == [2, 3, 2, 4, 3]
    assert (await shop.scheduler.run(PLAIN, INPUTS))["y"] == 1


async def test_first_requests_at_the_same_time_share_one_build_and_one_load(shop: Shop) -> None:
    shop.may_build.clear()
    draws = [asyncio.create_task(shop.draw(ONE)) for _ in range(5)]
    await asyncio.sleep(0.01)
    shop.may_build.set()
    assert await asyncio.gather(*draws) == [2] * 5
    assert len(shop.builds) == 1


async def test_who_gives_up_leaves_the_build_to_the_others(shop: Shop) -> None:
    shop.may_build.clear()
    first, second = (asyncio.create_task(shop.draw(ONE)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    shop.may_build.set()
    assert await second == 2
    assert [name for name, _ in shop.builds] == [ONE.spec.name]


async def test_when_the_last_gives_up_the_builder_is_told_and_nothing_is_loaded_and_the_next_asks_anew(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_run_time, "_AT_ONCE", 2)
    shop.may_build.clear()
    for number in range(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await shop.draw(Variant(PLAIN, (replace(ONE.parts[0], weight=1.0 + number),)))
        assert len(shop.variants._making) == 0
    alone = asyncio.create_task(shop.draw(TWO))
    await asyncio.sleep(0.01)
    alone.cancel()
    again = asyncio.create_task(shop.draw(TWO))  # before the first has left
    shop.may_build.set()
    async with asyncio.timeout(HANG_SECONDS):
        assert await again == 3
    assert shop.on_disk == shop.home._added == {TWO.spec.name}
    assert not shop.home._holds


async def test_more_at_once_than_may_be_are_told_to_come_later(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_run_time, "_AT_ONCE", 2)
    shop.may_build.clear()
    draws = [asyncio.create_task(shop.draw(variant)) for variant in (ONE, TWO, ONE, TWO)]
    await asyncio.sleep(0.01)
    with pytest.raises(TooManyAtOnce, match=r"2 sets of weights are being built or loaded.*later"):
        await shop.draw(THREE)
    shop.may_build.set()
    assert await asyncio.gather(*draws) == [2, 3, 2, 3]
    assert await shop.draw(THREE) == 4


async def test_others_go_on_while_one_is_built(shop: Shop) -> None:
    await shop.draw(ONE)
    shop.may_build.clear()
    cold = asyncio.create_task(shop.draw(TWO))
    async with asyncio.timeout(HANG_SECONDS):
        for _ in range(20):
            assert await shop.draw(ONE) == 2
            assert (await shop.scheduler.run(PLAIN, INPUTS))["y"] == 1
        assert not cold.done()
        shop.may_build.set()
        assert await cold == 3


async def test_what_is_held_is_named_to_the_builder_and_may_leave_memory_while_it_is_idle(shop: Shop) -> None:
    async with shop.variants.held({PLAIN.name: ONE}) as one:
        async with shop.variants.held({PLAIN.name: TWO}) as two:
            assert set(shop.builds[-1][1]) == {ONE.spec.name, TWO.spec.name}
            assert await shop.draw(THREE) == 4
            assert set(shop.builds[-1][1]) == {ONE.spec.name, TWO.spec.name, THREE.spec.name}
            assert (await shop.scheduler.run(PLAIN, INPUTS))["y"] == 1
            assert not shop.home.is_loaded(ONE.spec.name)
            assert (await two.run(PLAIN, INPUTS))["y"] == 3
        assert (await one.run(PLAIN, INPUTS))["y"] == 2
        assert len(shop.builds) == 3
    await shop.draw(TWO)
    await shop.draw(THREE)
    assert ONE.spec.name not in shop.home._added


OTHER, THIRD = replace(PLAIN, name="other"), replace(PLAIN, name="third")


@pytest.fixture
def many(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> dict[str, Variant]:
    """More than there is room for at once; who waits longer than a moment is refused."""
    monkeypatch.setattr(on_demand, "_ROOM_SECONDS", 1.0)
    variants = {spec.name: replace(ONE, graph=spec) for spec in (PLAIN, OTHER, THIRD)}
    answers = {variant.spec.name: times(number) for number, variant in enumerate(variants.values(), 2)}
    shop.engines._compute = {**shop.engines._compute, **answers}
    return variants


async def test_a_request_whose_variants_have_no_room_beside_each_other_is_served(
    shop: Shop, many: dict[str, Variant]
) -> None:
    async with shop.variants.held(many) as held:
        for _ in range(2):
            found = [float((await held.run(spec, INPUTS))["y"][0]) for spec in (PLAIN, OTHER, THIRD)]
            assert found == [2, 3, 4]
            assert (await shop.scheduler.run(PLAIN, INPUTS))["y"] == 1


async def test_requests_that_hold_what_the_other_needs_room_for_are_all_served(
    shop: Shop, many: dict[str, Variant]
) -> None:
    both = asyncio.Barrier(3)

    async def draw(*specs: Spec) -> None:
        async with shop.variants.held({spec.name: many[spec.name] for spec in specs[:1]}) as held:
            await held.run(specs[0], INPUTS)
            await both.wait()  # each holds one
            async with shop.variants.held({spec.name: many[spec.name] for spec in specs}) as held:
                for spec in specs:
                    await held.run(spec, INPUTS)

    async with asyncio.timeout(HANG_SECONDS):
        await asyncio.gather(draw(PLAIN, OTHER, THIRD), draw(OTHER, THIRD, PLAIN), draw(THIRD, PLAIN, OTHER))


async def test_what_idles_in_memory_leaves_it_and_then_the_disk_when_another_needs_room_there(shop: Shop) -> None:
    shop.home._budget = 1000
    shop.places = 2
    for variant, number in ((ONE, 2), (TWO, 3), (ONE, 2), (THREE, 4), (TWO, 3)):
        async with shop.variants.held({PLAIN.name: variant}) as held:
            assert (await held.run(PLAIN, INPUTS))["y"] == number
            assert held.made[0].build_seconds == (0 if held.made[0].source == "memory" else 0.5)
        assert shop.on_disk == shop.home._added
        assert all(map(shop.home.is_loaded, shop.on_disk))
    assert shop.on_disk == {TWO.spec.name, THREE.spec.name}


async def test_what_is_held_does_not_leave_the_disk_and_who_has_no_room_there_is_told_at_once(shop: Shop) -> None:
    shop.home._budget = 1000
    shop.places = 1
    async with shop.variants.held({PLAIN.name: ONE}) as held:
        await held.run(PLAIN, INPUTS)
        with pytest.raises(NoDisk):
            await shop.draw(TWO)
        assert shop.on_disk == {ONE.spec.name}
        await shop.home.unload(ONE.spec.name)
        assert (await held.run(PLAIN, INPUTS))["y"] == 2
    assert await shop.draw(TWO) == 3
    assert shop.on_disk == {TWO.spec.name}


async def test_what_is_held_again_while_it_is_to_leave_stays(shop: Shop) -> None:
    """The builder was told of an idle one that a request has taken since."""
    shop.home._budget = 1000
    shop.places = 1
    assert await shop.draw(ONE) == 2
    shop.may_build.clear()
    second = asyncio.create_task(shop.draw(TWO))
    await asyncio.sleep(0.01)
    async with shop.variants.held({PLAIN.name: ONE}) as held:
        shop.may_build.set()
        with pytest.raises(NoDisk):
            await second
        assert shop.home.is_loaded(ONE.spec.name)
        assert (await held.run(PLAIN, INPUTS))["y"] == 2


async def test_a_loaded_variant_whose_folder_somebody_removed_is_built_again(shop: Shop) -> None:
    assert await shop.draw(ONE) == 2
    (shop.folder / ONE.spec.name).rmdir()
    async with shop.variants.held({PLAIN.name: ONE}) as held:
        assert held.made[0].source == "built"
        assert shop.on_disk == {ONE.spec.name}
        assert (await held.run(PLAIN, INPUTS))["y"] == 2


async def test_a_fault_of_the_build_is_everybodys_who_waits_and_the_next_request_works(shop: Shop) -> None:
    shop.may_build.clear()
    draws = [asyncio.create_task(shop.draw(ONE)) for _ in range(3)]
    await asyncio.sleep(0.01)
    shop.faults.append(BuilderAway("it was killed"))
    shop.may_build.set()
    found = await asyncio.gather(*draws, return_exceptions=True)
    assert [type(one) for one in found] == [BuilderAway] * 3
    assert await shop.draw(ONE) == 2


async def test_several_variants_are_held_together_or_none_is(shop: Shop) -> None:
    other = replace(PLAIN, name="other")
    broken = Variant(other, ONE.parts)
    shop.engines._compute = {**shop.engines._compute, broken.spec.name: times(7)}
    async with shop.variants.held({PLAIN.name: ONE, other.name: broken}) as held:
        assert (await held.run(PLAIN, INPUTS))["y"] == 2
        assert (await held.run(other, INPUTS))["y"] == 7
    shop.faults.append(BuilderAway("it was killed"))
    with pytest.raises(BuilderAway):
        async with shop.variants.held({PLAIN.name: TWO, other.name: replace(broken, parts=TWO.parts)}):
            pytest.fail("nothing is held")
    async with asyncio.timeout(HANG_SECONDS):
        while shop.variants._making:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert not shop.home._holds


async def test_nothing_is_kept_of_a_thousand_variants_that_came_and_went(shop: Shop) -> None:
    for number in range(1000):
        variant = Variant(PLAIN, (replace(ONE.parts[0], weight=number / 7),))
        shop.engines._compute = {variant.spec.name: times(number)}
        assert await shop.draw(variant) == number
    assert len(shop.home._added) <= 2
    for what in (shop.home._memory, shop.engines._states, shop.scheduler.meter._means):
        assert len(what) <= 3
    for what in (shop.home._uses, shop.home._holds, shop.home._failures, shop.scheduler._lanes, shop.variants._making):
        assert len(what) == 0


async def test_a_variant_that_cannot_be_loaded_is_told_so_and_harms_no_other(shop: Shop) -> None:
    async def load(engine: str) -> None:
        if engine == ONE.spec.name:
            raise EngineUnavailable("it computes wrongly")
        await FakeEngines.load(shop.engines, engine)

    shop.engines.load = load  # type: ignore[method-assign]
    with pytest.raises(EngineUnavailable, match=r"--.* cannot be loaded: it computes wrongly"):
        await shop.draw(ONE)
    assert await shop.draw(TWO) == 3


async def test_weights_that_give_no_answer_are_the_fault_of_who_put_them_together(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def load(engine: str) -> None:
        raise EngineUnfit("y is not finite in 1 of 1 numbers")

    with monkeypatch.context() as patch:
        patch.setattr(shop.engines, "load", load)
        for _ in range(2):
            with pytest.raises(PartUnfit, match=r"put over plain .* y is not finite .* smaller weights"):
                await shop.draw(ONE)
    assert await shop.draw(TWO) == 3


async def test_without_a_builder_a_variant_is_refused_and_the_rest_runs() -> None:
    async def run(spec: Spec, inputs: Tensors) -> Tensors:
        return {"y": inputs["x"]}

    async with pristine(run)({}) as held:
        assert (await held.run(PLAIN, INPUTS))["y"] == 1
    with pytest.raises(BuilderAway, match="variants of plain"):
        async with pristine(run)({PLAIN.name: ONE}):
            pytest.fail("nothing is held")
