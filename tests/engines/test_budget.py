"""The real Triton under a memory budget: three engines where two have room."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from engines import toy

from server.engines import leftovers, on_demand
from server.engines.kept import KeptEngines
from server.engines.on_demand import OnDemandEngines
from server.engines.port import EngineUnavailable, Spec, State
from server.engines.supervisor import EmbeddedTriton
from server.engines.triton import TritonEngines

pytestmark = pytest.mark.asyncio(loop_scope="session")

SPECS = (toy.MIX, toy.WORDS, toy.SPIN)
FOREVER = {"turns": np.array([10_000_000])}  # minutes


@dataclass(frozen=True)
class Service:
    """A Triton of its own with room for two engines."""

    triton: EmbeddedTriton
    engines: OnDemandEngines

    def processes(self) -> dict[str, int]:
        """Pid of each engine's process, and of Triton as "triton"."""
        found = {}
        for pid, line in leftovers.command_lines():
            if self.triton.log_file.parent.name in line:
                engine = next((spec.name for spec in SPECS if f"{spec.name}_0_0" in line), None)
                if engine is not None or "/tritonserver\0" in line:
                    found[engine or "triton"] = pid
        return found

    async def answer(self, spec: Spec) -> dict[str, bytes]:
        """Of one execution, to the bit; it is right."""
        inputs = toy.example(spec, height=5, width=7)
        outputs = await self.engines.run(spec.name, inputs)
        for name, expected in toy.COMPUTE[spec.name](inputs).items():
            assert np.allclose(outputs[name], expected, rtol=1e-5, atol=1e-6)
        return {name: output.tobytes() for name, output in outputs.items()}

    async def states(self) -> dict[str, State]:
        return {name: condition.state for name, condition in (await self.engines.conditions()).items()}


@asynccontextmanager
async def serving(repository: Path, cache: Path) -> AsyncIterator[Service]:
    """Nothing is loaded."""
    async with EmbeddedTriton(repository, cache) as triton:
        kept = KeptEngines(TritonEngines(triton.address, SPECS), repository, SPECS)
        engines = OnDemandEngines(kept, {spec.name: 10 for spec in SPECS}, budget=25)
        try:
            yield Service(triton, engines)
        finally:
            await engines.close()


@pytest_asyncio.fixture(loop_scope="session")
async def service(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """An engine is idle as soon as its execution has ended."""
    monkeypatch.setattr(on_demand, "_LINGER_SECONDS", 0.0)
    async with serving(repository, tmp_path) as service:
        yield service


async def test_the_least_recently_used_one_is_gone_for_good_and_comes_back_exactly(service: Service) -> None:
    first = await service.answer(toy.MIX)
    await service.answer(toy.WORDS)
    assert service.processes().keys() == {"triton", toy.MIX.name, toy.WORDS.name}
    await service.answer(toy.SPIN)
    assert service.processes().keys() == {"triton", toy.WORDS.name, toy.SPIN.name}
    assert await service.answer(toy.MIX) == first
    assert service.processes().keys() == {"triton", toy.SPIN.name, toy.MIX.name}


async def test_what_executes_stays_and_the_idle_one_goes(service: Service) -> None:
    await service.answer(toy.SPIN)
    await service.answer(toy.MIX)
    spinning = asyncio.create_task(service.engines.run(toy.SPIN.name, FOREVER))
    await asyncio.wait((spinning,), timeout=0.1)
    spin = service.processes()[toy.SPIN.name]
    await service.answer(toy.WORDS)  # spin was used before mix
    assert service.processes().keys() == {"triton", toy.SPIN.name, toy.WORDS.name}
    assert service.processes()[toy.SPIN.name] == spin
    assert not spinning.done()
    os.kill(spin, signal.SIGKILL)  # it would go on for minutes
    with pytest.raises(EngineUnavailable):
        await spinning


async def test_first_uses_of_many_at_the_same_time_are_all_served(service: Service) -> None:
    async with asyncio.timeout(60):
        await asyncio.gather(*(service.answer(spec) for spec in SPECS * 3))
    assert len(service.processes()) == 3


async def test_a_killed_triton_comes_back_with_what_was_loaded_and_nothing_else(service: Service) -> None:
    await service.answer(toy.MIX)
    await service.answer(toy.WORDS)
    await service.answer(toy.SPIN)
    assert await service.engines.healthy()
    os.kill(service.processes()["triton"], signal.SIGKILL)
    async with asyncio.timeout(15):
        while await service.engines.healthy():  # noqa: ASYNC110  (of another process, there is no event)
            await asyncio.sleep(0.02)
        while not await service.engines.healthy():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert service.processes().keys() == {"triton", toy.WORDS.name, toy.SPIN.name}
    unloaded, ready = State.UNLOADED, State.READY
    assert await service.states() == {toy.MIX.name: unloaded, toy.WORDS.name: ready, toy.SPIN.name: ready}
    await service.answer(toy.MIX)


async def test_a_damaged_engine_harms_no_other_and_serves_once_it_is_repaired(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_demand, "_PAUSES", (0.0,))
    damaged = tmp_path / "repository"
    shutil.copytree(repository, damaged)
    weights = damaged / toy.MIX.name / "1" / "weights.safetensors"
    intact = weights.read_bytes()
    async with serving(damaged, tmp_path / "cache") as service:
        for wrong in (intact[:-4] + b"\xff\x3c\xff\x3c", intact[:-2]):  # other numbers; cut off
            weights.write_bytes(wrong)
            with pytest.raises(EngineUnavailable, match="toy_mix cannot be loaded: "):
                await service.answer(toy.MIX)
            assert toy.MIX.name not in service.processes()
            await service.answer(toy.WORDS)
            assert await service.engines.healthy()
            assert await service.states() == {
                toy.MIX.name: State.LOST,
                toy.WORDS.name: State.READY,
                toy.SPIN.name: State.UNLOADED,
            }
        weights.write_bytes(intact)
        await service.answer(toy.MIX)
