"""`python -m bench.overhead`: what a call costs outside its engines' executions, and where that goes.

This process is the gateway, put together as server/app.py does it with the embedded Triton, but with a clock at the
seams: around the engines and around the scheduler. The caller is a process of its own. Triton's statistics say how long
the engines executed during a call; the rest of the time that the caller saw is the cost. The clocks are nested, so each
part is the difference of two of them and the parts add up. Progress messages: what a stream costs above a unary call.
"""

import argparse
import asyncio
import json
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from mediagen.v1 import image_pb2_grpc
from tritonclient.grpc import service_pb2 as triton_pb
from tritonclient.grpc import service_pb2_grpc

from bench import hollow
from bench.caller import STREAM, UNARY
from bench.gateway import load
from bench.limit import loopback_seconds
from server import settings
from server.admission import Admission
from server.catalog import Engine, read_catalog
from server.engines.on_demand import OnDemandEngines
from server.engines.port import Array, Spec, Tensors
from server.engines.supervisor import EmbeddedTriton
from server.engines.triton import TritonEngines
from server.families.base import Run
from server.prompt_filter import nothing_blocked
from server.rpc.image_service import ImageService
from server.rpc.interceptor import CallInterceptor
from server.scheduler import StepScheduler
from server.variants import pristine

GOAL = 2.0  # ms a step
_PHASES = ("conditioning_ms", "denoising_ms", "decoding_ms", "encoding_ms")

Milliseconds = dict[str, float]  # by phase, or by "<what> <engine>"


class TimedEngines(TritonEngines):
    """Adds up the time between asking for executions and having their outputs, as "call <engine>"."""

    def __init__(self, address: str, engine: Engine) -> None:
        super().__init__(address, engine.specs)
        self.spent: defaultdict[str, float] = defaultdict(float)

    async def run(self, engine: str, inputs: Tensors, timeout: float | None = None) -> dict[str, Array]:
        """As `Engines.run`."""
        begin = time.perf_counter()
        outputs = await super().run(engine, inputs, timeout)
        self.spent[f"call {engine}"] += (time.perf_counter() - begin) * 1e3
        return outputs


def _timed(run: Run, spent: defaultdict[str, float]) -> Run:
    """The same `run`; its time is added up as "run <engine>"."""

    async def timed(spec: Spec, inputs: Tensors) -> Mapping[str, Array]:
        begin = time.perf_counter()
        outputs = await run(spec, inputs)
        spent[f"run {spec.name}"] += (time.perf_counter() - begin) * 1e3
        return outputs

    return timed


@dataclass(frozen=True)
class Bench:
    """A gateway with clocks and its caller."""

    engine: Engine
    engines: TimedEngines
    triton: service_pb2_grpc.GRPCInferenceServiceStub
    caller: asyncio.subprocess.Process

    async def call(self, kind: str) -> Milliseconds:
        """One picture: the caller's clock, the reply's timings, the seams' clocks and Triton's statistics."""
        self.engines.spent.clear()
        before = await self._statistics()
        assert self.caller.stdin is not None
        assert self.caller.stdout is not None
        self.caller.stdin.write(f"{kind}\n".encode())
        answer = await self.caller.stdout.readline()
        after = await self._statistics()
        found: Milliseconds = {
            **json.loads(answer),
            **self.engines.spent,
            **{name: after[name] - before[name] for name in after},
        }
        found["cost"] = found["wall"] - sum(found[f"execution {name}"] for name in _names(self.engine))
        return found

    async def _statistics(self) -> Milliseconds:
        """Triton's, since the engines were loaded: "request <engine>" is from a request's arrival to its answer."""
        reply = await self.triton.ModelStatistics(triton_pb.ModelStatisticsRequest())
        found: Milliseconds = {}
        for model in reply.model_stats:
            found[f"request {model.name}"] = model.inference_stats.success.ns / 1e6
            found[f"execution {model.name}"] = model.inference_stats.compute_infer.ns / 1e6
            found[f"count {model.name}"] = model.execution_count
        return found

    async def empty_call(self) -> float:
        """A call to Triton without tensors, in ms."""
        begin = time.perf_counter()
        await self.triton.ServerLive(triton_pb.ServerLiveRequest())
        return (time.perf_counter() - begin) * 1e3


@asynccontextmanager
async def prepared(repository: Path, steps: int, cache: Path) -> AsyncIterator[Bench]:
    """The composition of server/app.py with clocks in it."""
    catalog = read_catalog(repository)
    engine = catalog["sd15"]
    async with EmbeddedTriton(repository, cache / "triton") as triton:
        engines = TimedEngines(triton.address, engine)
        server = grpc.aio.server(interceptors=(CallInterceptor(),))
        port = server.add_insecure_port("127.0.0.1:0")
        names = _names(engine)
        on_demand = OnDemandEngines(engines, dict.fromkeys(names, 0), budget=0)
        scheduler = StepScheduler(on_demand)
        run = _timed(scheduler.run, engines.spent)
        service = ImageService(catalog, pristine(run), Admission(1), nothing_blocked, scheduler.meter.seconds)
        image_pb2_grpc.add_ImageServiceServicer_to_server(service, server)
        channel = grpc.aio.insecure_channel(triton.address)
        caller = None
        try:
            await asyncio.gather(*map(on_demand.load, names))
            await server.start()
            caller = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "bench.caller", f"127.0.0.1:{port}", str(steps)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            yield Bench(engine, engines, service_pb2_grpc.GRPCInferenceServiceStub(channel), caller)
        finally:
            if caller is not None:
                caller.terminate()
                await caller.wait()
            await server.stop(None)
            await asyncio.gather(channel.close(), on_demand.close())


def _names(engine: Engine) -> list[str]:
    """Of the networks that draw a picture from text."""
    return [f"{engine.card.name}_{part}" for part in ("text_encoder", "unet", "vae_decoder")]


def parts(engine: Engine, call: Milliseconds) -> dict[str, float]:
    """A unary call's cost taken apart, in ms; the parts add up to it."""
    text, unet, vae = _names(engine)
    phases = sum(call[phase] for phase in _PHASES)
    around = call["conditioning_ms"] - call[f"execution {text}"] + call["decoding_ms"] - call[f"execution {vae}"]
    return {
        "step: gRPC, gateway and Triton": call[f"call {unet}"] - call[f"request {unet}"],
        "step: Triton around the execution": call[f"request {unet}"] - call[f"execution {unet}"],
        "step: scheduler": call[f"run {unet}"] - call[f"call {unet}"],
        "step: guidance, sampler, noise": call["denoising_ms"] - call[f"run {unet}"],
        "picture: calls of text engine and VAE": around,
        "picture: PNG encoding": call["encoding_ms"],
        "call: plan and reply in the gateway": call["total_ms"] - phases,
        "call: gRPC, caller and gateway": call["wall"] - call["total_ms"],
    }


async def measure(repository: Path, steps: int, repeats: int, cache: Path) -> None:
    """Print the table of one model repository."""
    async with prepared(repository, steps, cache) as bench:
        for kind in (UNARY, STREAM):  # the first of each warms caches
            await bench.call(kind)
        calls = [(await bench.call(UNARY), await bench.call(STREAM)) for _ in range(repeats)]
        empty = statistics.median([await bench.empty_call() for _ in range(50)])
        _, unet, _ = _names(bench.engine)
        for unary, _ in calls:
            if unary[f"count {unet}"] != steps:
                raise SystemExit(f"the UNet executed {unary[f'count {unet}']} times in {steps} steps")
        there, back = _step_bytes(bench.engine)
        bare = loopback_seconds(there, back) * 1e3
        print(
            f"  limit: a step moves {there / 1024:.0f} KiB to Triton and {back / 1024:.0f} KiB back: {bare:.2f} ms over"
        )
        print(f"  bare loopback TCP; a gRPC call to Triton without tensors takes {empty:.2f} ms")
        _print(bench.engine, calls, steps)


def _print(engine: Engine, calls: list[tuple[Milliseconds, Milliseconds]], steps: int) -> None:
    unary, stream = (sorted((pair[i] for pair in calls), key=lambda call: call["cost"]) for i in range(2))
    quiet = math.ceil(len(calls) / 4)  # the quarter that other programs disturbed least
    taken = [parts(engine, call) for call in unary[:quiet]]
    mean = {name: statistics.mean(some[name] for some in taken) for name in taken[0]}
    streaming = statistics.mean(call["cost"] for call in stream[:quiet])
    mean["step: progress messages"] = streaming - sum(mean.values())
    wall = statistics.mean(call["wall"] for call in stream[:quiet])
    print(f"  {len(calls)} calls of {steps} steps of each kind; means of the quietest {quiet}, {wall:.0f} ms each:\n")
    print(f"  {'':40}{'ms a call':>10}{'ms a step':>11}{'share':>7}")

    def line(name: str, milliseconds: float) -> None:
        print(f"  {name:40}{milliseconds:10.2f}{milliseconds / steps:11.3f}{milliseconds / streaming:7.0%}")

    for name in sorted(mean, key=lambda name: name.split(":")[0], reverse=True):
        line(name, mean[name])
    line("GenerateStream: the sum", streaming)
    median = statistics.median(call["cost"] for call in stream)
    line("GenerateStream: median of all calls", median)
    line("Generate: median of all calls", statistics.median(call["cost"] for call in unary))
    _, denoiser, _ = _names(engine)
    execution = statistics.mean(call[f"execution {denoiser}"] for call in unary[:quiet])
    print(f"\n  not in it: {execution / steps:.2f} ms a step that Triton counts as the UNet's execution")
    for name, cost in (("quietest calls", streaming), ("median", median)):
        print(f"  goal, under {GOAL:.0f} ms a step: {'met' if cost / steps < GOAL else 'missed'} ({name})")
    print()


def _step_bytes(engine: Engine) -> tuple[int, int]:
    """Of a guided 512x512 step's tensors, all of 4-byte values: to the UNet, and back."""
    card = engine.card
    rows, latent = 2, card.latent_channels * (512 // card.pixels_per_latent) ** 2
    return 4 * rows * (latent + 1 + 77 * card.text_width), 4 * rows * latent


def main() -> None:
    """Two tables: engines that compute next to nothing, then the real ones."""
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description="Cost of a call outside its engines.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--repeats", type=int, default=3, help="pairs of calls with the real engines; 0 leaves them out"
    )
    arguments = parser.parse_args()
    read = settings.read()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "repository")
        root.mkdir()
        hollow.write(read.model_repository, root)
        print(f"engines that compute next to nothing ({load()}):")
        asyncio.run(measure(root, arguments.steps, 30, Path(folder, "cache")))
    if arguments.repeats > 0:
        print(f"the engines of {read.model_repository.name} ({load()}):")
        asyncio.run(measure(read.model_repository, arguments.steps, arguments.repeats, read.cache))


if __name__ == "__main__":
    main()
