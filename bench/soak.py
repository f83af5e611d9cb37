"""Variants come and go for hours while others draw: is every answer right, and does nothing grow? `make soak`.

`python -m bench.soak --cycles 500` composes what server/app.py does: the embedded Triton, the builder, a memory budget
that holds two variants and a disk budget that holds four, so that each cycle unloads one and now and then removes one
from disk. All answers of one set of LoRAs must be equal in every bit, from first to last. Meanwhile steps of the plain
UNet run without a pause, and the longest time without one is told. It ends with status 1 and says what grew.
"""

import argparse
import asyncio
import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from safetensors.numpy import load_file

from bench.loras import lora
from server.adapters.weights import Part, Variant
from server.builder.client import Builder, Command, EmbeddedBuilder
from server.catalog import read_catalog
from server.engines import leftovers, memory
from server.engines.kept import KeptEngines
from server.engines.on_demand import OnDemandEngines
from server.engines.port import Array, Spec
from server.engines.supervisor import EmbeddedTriton
from server.engines.triton import TritonEngines
from server.scheduler import StepScheduler
from server.variants import Variants

REPOSITORY = Path(__file__).resolve().parent.parent / "model_repository"
SETS = 6  # of LoRAs
SETTLED = 0.25  # share of the cycles, and all sets at least once, after which nothing is new: what grows later, grows
LOADED = 2  # variants at once, see `composed`
GROWTH = 16 * 2**20  # bytes: allocators keep what they were given; a leak of a variant's weights is more in ten cycles


@dataclass(frozen=True)
class Counts:
    """What must not grow."""

    processes: int  # Triton and one an engine
    regions: int  # under /dev/shm
    known: int  # engines that any part still knows, lanes, builds under way
    disk: int  # bytes of the variants' folder
    folders: int  # in it
    gateway: int  # bytes of memory that this process alone holds
    triton: int
    builder: int


@dataclass(frozen=True)
class Soaked:
    """What was seen."""

    cycles: int
    built: int
    from_disk: int
    from_memory: int
    settled: Counts
    last: Counts
    steps: int  # of others meanwhile
    longest_gap: float  # seconds without one of them
    usual_step: float  # seconds: the median


@dataclass
class Bench:
    """What server/app.py composes, and the LoRAs."""

    spec: Spec
    unet: Spec
    sets: Sequence[Variant]
    triton: EmbeddedTriton
    builder: EmbeddedBuilder
    kept: KeptEngines
    home: OnDemandEngines
    scheduler: StepScheduler
    variants: Variants
    folder: Path

    def counts(self) -> Counts:
        """Now."""
        mark = self.triton.log_file.parent.name
        ours = [(pid, line) for pid, line in leftovers.command_lines() if mark in line]
        triton = next(pid for pid, line in ours if "/tritonserver\0" in line)
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        known = (
            self.kept._kept,
            self.home._memory,
            self.home._uses,
            self.home._holds,
            self.home._failures,
            self.scheduler._lanes,
        )
        gc.collect()
        return Counts(
            processes=len(ours),
            regions=len(list(Path("/dev/shm").glob(f"{mark}*"))),
            known=sum(map(len, known)) + len(self.variants._making),
            disk=sum(path.stat().st_size for path in files if path.stat().st_nlink == 1),
            folders=len(list(self.folder.glob("*/"))),
            gateway=_private(os.getpid()),
            triton=_private(triton),
            builder=0 if self.builder.pid is None else _private(self.builder.pid),
        )


@asynccontextmanager
async def composed(work: Path, component: str = "text_encoder") -> AsyncIterator[Bench]:
    """With room for two variants in memory and for about four on disk."""
    catalog = read_catalog(REPOSITORY)
    specs = {spec.name: spec for spec in catalog["sd15"].specs}
    spec, unet = specs[f"sd15_{component}"], specs["sd15_unet"]
    parts = [lora(REPOSITORY, work / "assets", "sd15", component, seed) for seed in range(SETS)]
    sets = [Variant(spec, (part,)) for part in parts[:-1]]
    sets.append(Variant(spec, tuple(Part("lora", part.sha256, part.components, -0.5) for part in parts[:2])))
    sizes = {name: memory.estimate(REPOSITORY, name) for name in specs}
    budget = sizes[unet.name] + LOADED * sizes[spec.name]
    folder = work / "variants"
    folder.mkdir()
    async with AsyncExitStack() as stack:
        command = Command(REPOSITORY, work / "assets", folder, _disk(spec))
        builder = await stack.enter_async_context(EmbeddedBuilder(command, work))
        triton = await stack.enter_async_context(EmbeddedTriton(REPOSITORY, work / "triton", variants=folder))
        kept = KeptEngines(TritonEngines(triton.address, specs.values()), REPOSITORY, specs.values())
        home = OnDemandEngines(kept, sizes, budget)
        stack.push_async_callback(home.close)
        client = Builder(builder.address)
        stack.push_async_callback(client.close)
        scheduler = StepScheduler(home)
        variants = Variants(home, client.ensure, folder, scheduler.run_as)
        stack.push_async_callback(variants.close)
        yield Bench(spec, unet, sets, triton, builder, kept, home, scheduler, variants, folder)


async def soak(bench: Bench, cycles: int) -> Soaked:
    """Raises `AssertionError` at the first wrong answer, or at the end for what grew."""
    inputs = golden(bench.spec)
    answers: dict[str, Mapping[str, Array]] = {}
    sources: list[str] = []
    times: list[float] = []
    traffic = asyncio.create_task(_draw(bench, times))
    settled: Counts | None = None
    for cycle in range(cycles):
        variant = bench.sets[(cycle * 5) % SETS if cycle % 7 else cycle % 2]  # in turns, and some again at once
        async with bench.variants.held({bench.spec.name: variant}) as held:
            found = await held.run(bench.spec, inputs)
        expected = answers.setdefault(variant.spec.name, found)
        for name, value in expected.items():
            assert value.tobytes() == found[name].tobytes(), f"cycle {cycle}: {variant.spec.name} answers otherwise"
        sources.append(held.made[0].source)
        if settled is None and len(answers) == SETS and cycle >= int(cycles * SETTLED):
            settled = await _calm(bench)
        assert not traffic.done(), traffic.result()
    last = await _calm(bench)
    traffic.cancel()
    await asyncio.gather(traffic, return_exceptions=True)
    assert len({value.tobytes() for answer in answers.values() for value in answer.values()}) >= len(answers)
    assert settled is not None, f"{cycles} cycles are too few for {SETS} sets"
    gaps = [later - earlier for earlier, later in pairwise(times)]
    seen = Soaked(
        *(cycles, *(sources.count(source) for source in ("built", "disk", "memory")), settled, last, len(times)),
        longest_gap=max(gaps),
        usual_step=sorted(gaps)[len(gaps) // 2],
    )
    found = wrong(seen, len({*bench.home.needed, *bench.home.idle}), len(read_catalog(REPOSITORY)["sd15"].specs))
    assert not found, "; ".join(found)
    return seen


def wrong(seen: Soaked, loaded: int, plain: int) -> list[str]:
    """What grew, or was not exercised; `loaded` variants are in memory at the end, beside `plain` engines known."""
    last = seen.last
    at_most = {
        "loaded variants": (loaded, LOADED),
        "processes": (last.processes, 2 + loaded),  # Triton, the plain UNet's, and one a variant
        "regions of shared memory": (last.regions, 1 + loaded),
        "known engines": (last.known, 2 * (plain + loaded) + 3),  # in two places each, and what is under way
        "variants on disk": (last.folders, SETS - 1),
        **{
            f"bytes of the {process}": (getattr(last, process), getattr(seen.settled, process) + GROWTH)
            for process in ("gateway", "triton", "builder")
        },
    }
    at_least = {
        "built": (seen.built, SETS),
        "from disk or memory": (seen.from_disk + seen.from_memory, 1),
        "steps of others": (seen.steps, seen.cycles + 1),
    }
    return [
        *(f"{what}: {number}, at most {most} are right" for what, (number, most) in at_most.items() if number > most),
        *(f"{what}: {number}, at least {few} are right" for what, (number, few) in at_least.items() if number < few),
    ]


def golden(spec: Spec) -> dict[str, Array]:
    """Inputs that are at hand."""
    tensors = load_file(REPOSITORY / spec.name / "1" / "golden.safetensors")
    return {port.name: tensors[f"input.{port.name}"] for port in spec.inputs}


async def _draw(bench: Bench, times: list[float]) -> None:
    """Steps of somebody's picture, for ever; each is as it always was."""
    inputs, first = golden(bench.unet), None
    while True:
        found = (await bench.scheduler.run(bench.unet, inputs))["prediction"].tobytes()
        times.append(time.perf_counter())
        first = found if first is None else first
        assert found == first, "a step of the plain UNet answers otherwise"


async def _calm(bench: Bench) -> Counts:
    """Once no engine is leaving."""
    async with asyncio.timeout(30):
        while bench.home._leaving:  # noqa: ASYNC110  (it tells nobody)
            await asyncio.sleep(0.05)
    return bench.counts()


def _disk(spec: Spec) -> int:
    """Bytes for as much as the engine's own folder takes: a variant changes a quarter of it."""
    return sum(path.stat().st_size for path in (REPOSITORY / spec.name / "1").iterdir())


def _private(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean")))


async def _main(cycles: int, component: str) -> None:
    work = Path(tempfile.mkdtemp(prefix="mediagen-soak-"))
    try:
        async with composed(work, component) as bench:
            seen = await soak(bench, cycles)
    finally:
        shutil.rmtree(work)
    print(f"{seen.cycles} cycles: {seen.built} built, {seen.from_disk} from disk, {seen.from_memory} from memory")
    print(f"{seen.steps} steps of others, one in {seen.usual_step:.3f} s, the longest gap {seen.longest_gap:.3f} s")
    for name in Counts.__dataclass_fields__:
        print(f"{name:10} {getattr(seen.settled, name):12} -> {getattr(seen.last, name):12}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--cycles", type=int, default=500)
    parser.add_argument("--component", choices=("text_encoder", "unet"), default="text_encoder")
    given = parser.parse_args()
    try:
        asyncio.run(_main(given.cycles, given.component))
    except AssertionError as error:
        sys.exit(f"wrong after all: {error}")
