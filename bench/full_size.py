"""`python -m bench.full_size sd15|sdxl`: a published architecture at its full size, without its weights.

Built from the values of its config files with random weights, exported by `python -m export`, loaded into the embedded
Triton, one denoising step run through the service's engine port, compared with torch. Every phase is a process of its
own, so that torch and the engine are never in memory together, and leaves its result in the work folder: a second start
goes on where the first one ended.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from bench.gateway import load as machine_load
from bench.gateway import resident_mib
from server.catalog import read_catalog
from server.engines.golden import TOLERANCES
from server.engines.kept import KeptEngines
from server.engines.supervisor import EmbeddedTriton
from server.engines.triton import TritonEngines

# In float32 OpenVINO takes 8 bytes a parameter: 21 GB for SDXL's UNet.
_PRECISIONS: Mapping[str, str] = {"sd15": "float32", "sdxl": "bfloat16"}
_SEED = 16
_STEP, _FOUND = "step.safetensors", "found.safetensors"  # what torch was given and gave; what the engine gave


def _write(work: Path, name: str, is_tiny: bool) -> str:
    from bench.shapes import FULL, tiny, write_checkpoint

    shape = tiny(name) if is_tiny else FULL[name]
    return f"{write_checkpoint(shape, work / 'checkpoint') / 1e6:,.0f} million parameters"


def _export(work: Path, name: str, is_tiny: bool) -> str:
    from export.__main__ import main

    status = main([name, "--checkpoint", str(work / "checkpoint"), "--out", str(work / "repository")])
    if status != 0:
        raise SystemExit(status)
    megabytes = sum(file.stat().st_size for file in (work / "repository").rglob("*") if file.is_file()) / 1e6
    return f"{megabytes:,.0f} MB on disk, every engine equals torch"


def _torch(work: Path, name: str, is_tiny: bool) -> str:
    """The reference, kept on disk."""
    from importlib import import_module

    from safetensors.numpy import save_file

    from bench.shapes import FULL, tiny
    from export import parity
    from export.checkpoint import open_checkpoint
    from export.recipes import examples
    from export.weights import load_component

    family = import_module(f"export.recipes.{name}")
    checkpoint = open_checkpoint(str(work / "checkpoint"), None, ())
    card = family.card(checkpoint, name, "", None)
    (recipe,) = (recipe for recipe in family.recipes(checkpoint, card) if recipe.component == "unet")
    inputs = examples(recipe, (tiny(name) if is_tiny else FULL[name]).step, _SEED)
    module = recipe.wrap(load_component(family.COMPONENTS["unet"], checkpoint, "unet"))
    begin = time.perf_counter()
    expected = parity.reference(recipe, module, inputs)
    seconds = time.perf_counter() - begin
    tensors = {f"input.{key}": tensor for key, tensor in inputs.items()}
    tensors |= {f"output.{key}": tensor.copy() for key, tensor in expected.items()}
    save_file(tensors, work / _STEP)
    return f"a guided step of {'x'.join(map(str, inputs['sample'].shape))} in {seconds:.1f} s"


def _triton(work: Path, name: str, is_tiny: bool) -> str:
    precision = _precision(name, is_tiny)
    config = work / "repository" / f"{name}_unet" / "config.pbtxt"
    config.write_text(config.read_text().replace('"float32"', f'"{precision}"'))
    return asyncio.run(_step(work, name, precision))


async def _step(work: Path, name: str, precision: str) -> str:
    """Load the denoiser, which proves its golden tensors, and run the step twice."""
    from safetensors.numpy import load_file, save_file

    repository = work / "repository"
    spec = next(spec for spec in read_catalog(repository)[name].specs if spec.name == f"{name}_unet")
    tensors = load_file(work / _STEP)
    inputs = {port.name: tensors[f"input.{port.name}"] for port in spec.inputs}
    seconds: list[float] = []
    async with EmbeddedTriton(repository, work / "cache") as triton:
        engines = KeptEngines(TritonEngines(triton.address, (spec,)), repository, (spec,))
        begin = time.perf_counter()
        await engines.load(spec.name)
        loading = time.perf_counter() - begin
        for _ in range(2):
            begin = time.perf_counter()
            found = await engines.run(spec.name, inputs)
            seconds.append(time.perf_counter() - begin)
        engine_mib = max(map(resident_mib, _descendants(os.getpid())))
        await engines.close()
    save_file(found, work / _FOUND)
    return (
        f"{precision}; loaded and proved in {loading:.1f} s; a guided step in {seconds[0]:.1f}, "
        f"then {seconds[1]:.1f} s; the engine's process took {engine_mib:,.0f} MiB at most"
    )


def _comparison(work: Path, name: str, is_tiny: bool) -> str:
    from safetensors.numpy import load_file

    allowed = TOLERANCES[_precision(name, is_tiny)].relative
    found, expected = load_file(work / _FOUND)["prediction"], load_file(work / _STEP)["output.prediction"]
    a, b = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    relative = float(np.abs(a - b).max() / np.abs(b).max())
    cosine = float(a @ b / np.sqrt((a @ a) * (b @ b)))
    if not (np.isfinite(a).all() and b.std() > 0 and relative <= allowed):
        raise SystemExit(f"engine and torch differ by {relative:.3g} of the largest value, allowed is {allowed:g}")
    return f"largest difference {relative:.1e} of the largest value (allowed {allowed:g}), cosine {cosine:.6f}"


def _precision(name: str, is_tiny: bool) -> str:
    """In which the denoiser is served."""
    return "float32" if is_tiny else _PRECISIONS[name]


_PHASES: Mapping[str, Callable[[Path, str, bool], str]] = {
    "checkpoint": _write,
    "export": _export,
    "torch": _torch,
    "triton": _triton,
    "comparison": _comparison,
}


def _descendants(pid: int) -> Iterator[int]:
    """All processes below one."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            parent = next(line for line in status.read_text().splitlines() if line.startswith("PPid:"))
        except OSError:  # it has ended
            continue
        if int(parent.split()[1]) == pid:
            child = int(status.parent.name)
            yield child
            yield from _descendants(child)


def _measured(command: list[str], work: Path, phase: str) -> None:
    """Run a phase and add its time and memory to the result it leaves."""
    begin = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{phase} ended with {process.returncode}; start the command again to go on from there")
    said = (work / f"{phase}.said").read_text()
    result = {
        "seconds": time.perf_counter() - begin,
        "mib": usage.ru_maxrss / 1024,
        "said": said,
        "load": machine_load(),
    }
    (work / f"{phase}.json").write_text(json.dumps(result))


def main(arguments: list[str] | None = None) -> None:
    """All phases that have not left a result yet, then the table of all of them."""
    parser = argparse.ArgumentParser(prog="python -m bench.full_size", description="A published architecture, whole.")
    parser.add_argument("name", choices=("sd15", "sdxl"))
    parser.add_argument("--work", type=Path, help="where results stay (default: one of its own in .cache/full_size)")
    parser.add_argument("--tiny", action="store_true", help="the same way with a hundredth of the width")
    parser.add_argument("--phase", choices=tuple(_PHASES), help="this one alone, in this process")
    given = parser.parse_args(arguments)
    folder = f"{given.name}_tiny" if given.tiny else given.name
    work = Path(".cache", "full_size", folder) if given.work is None else given.work
    work.mkdir(parents=True, exist_ok=True)
    if given.phase is not None:
        said = _PHASES[given.phase](work, given.name, given.tiny)
        (work / f"{given.phase}.said").write_text(said)
        return
    tiny = ["--tiny"] if given.tiny else []
    for phase in _PHASES:
        if not (work / f"{phase}.json").exists():
            command = [sys.executable, "-m", "bench.full_size", given.name, "--work", str(work), "--phase", phase]
            _measured([*command, *tiny], work, phase)
    print("| phase | time | peak memory | |\n|---|---|---|---|")
    for phase in _PHASES:
        result = json.loads((work / f"{phase}.json").read_text())
        print(
            f"| {phase} | {result['seconds']:,.0f} s | {result['mib']:,.0f} MiB | {result['said']}; {result['load']} |"
        )


if __name__ == "__main__":
    main()
