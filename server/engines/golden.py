"""Readiness that is true: every engine computes tensors whose answer is known, from `<engine>/1/golden.safetensors`.

The file holds `input.<port>` and `output.<port>`; the outputs are the reference implementation's. It catches what a
loaded engine does not show: a runtime that computes something else, and tensors damaged on the way there or back. Of an
engine with somebody else's weights nobody knows the answer, and the file has no outputs: its answer must be one, finite
and of the declared shape.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from server.engines import config
from server.engines.port import Array, EngineFault, Engines, EngineUnfit, Port, Spec, Tensors


class GoldenMismatch(EngineFault):
    """The engine answers, and wrongly."""


_SECONDS = 60.0  # an engine that takes longer hangs: golden tensors are small; the rest is for what runs before them


@dataclass(frozen=True)
class Tolerance:
    """How far an engine may be from the reference."""

    relative: float  # greatest difference of a float tensor, in units of the reference's greatest magnitude
    levels: int  # greatest difference of a uint8 tensor


# OpenVINO in fp32 was seen to differ from torch by 1e-6 and one level, in bf16 (8 bits a product) by 1e-2 and 7 levels.
TOLERANCES: Mapping[str, Tolerance] = {"float32": Tolerance(2e-3, 1), "bfloat16": Tolerance(8e-2, 16)}


async def check(engines: Engines, repository: Path, specs: Iterable[Spec]) -> None:
    """Run the golden tensors of all specs. Raises `GoldenMismatch`, `EngineUnfit` where nobody knows the answer and
    this is none, or the fault of the engine that could not run.
    """
    await asyncio.gather(*(_check(engines, repository, spec) for spec in specs))


async def _check(engines: Engines, repository: Path, spec: Spec) -> None:
    path = repository / spec.name / "1" / "golden.safetensors"
    try:
        tensors = await asyncio.to_thread(load_file, path)
        inputs = {port.name: tensors[f"input.{port.name}"] for port in spec.inputs}
        known = any(name.startswith("output.") for name in tensors)
        expected = {port.name: tensors[f"output.{port.name}"] for port in spec.outputs} if known else {}
        precision = (await asyncio.to_thread(config.read, repository, spec.name)).precision
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise GoldenMismatch(f"{path} cannot be used: {error}; export the checkpoint again") from error
    found = await engines.run(spec.name, inputs, _SECONDS)
    axes = _axes(spec.inputs, inputs)
    for port in spec.outputs:
        if not known and (problem := _implausible(port, found[port.name], axes)) is not None:
            raise EngineUnfit(f"engine {spec.name} gives no answer: {port.name} {problem}")
        if known and (problem := _difference(found[port.name], expected[port.name], TOLERANCES[precision])) is not None:
            raise GoldenMismatch(f"engine {spec.name} computes wrongly: {port.name} {problem}, by {path}")


def _axes(ports: Iterable[Port], tensors: Tensors) -> Mapping[str, int]:
    """The lengths of the free axes."""
    return {
        axis: length
        for port in ports
        for axis, length in zip(port.shape, tensors[port.name].shape, strict=True)
        if isinstance(axis, str)
    }


def _implausible(port: Port, found: Array, axes: Mapping[str, int]) -> str | None:
    """Why this can be nobody's answer, or None. An axis that no input has may have any length."""
    lengths = [axes.get(axis) if isinstance(axis, str) else axis for axis in port.shape]
    fits = found.dtype == port.dtype and found.ndim == len(lengths)
    if not fits or any(wanted not in (None, length) for wanted, length in zip(lengths, found.shape, strict=True)):
        return f"is {found.dtype}{list(found.shape)}, must be {port.dtype}{lengths}"
    strange = int(np.size(found) - np.isfinite(found).sum())
    return f"is not finite in {strange} of {np.size(found)} numbers" if strange else None


def _difference(found: Array, reference: Array, tolerance: Tolerance) -> str | None:
    """What is wrong with `found`, or None. NaN and infinity are wrong."""
    if found.shape != reference.shape or found.dtype != reference.dtype:
        return f"is {found.dtype}{list(found.shape)}, must be {reference.dtype}{list(reference.shape)}"
    gap = float(np.abs(found.astype(np.float64) - reference).max())
    unit, allowed = (1.0, tolerance.levels) if reference.dtype == np.uint8 else (_scale(reference), tolerance.relative)
    if not gap <= allowed * unit:
        return f"is off by {gap / unit:.3g}, allowed is {allowed:.3g}"
    return None


def _scale(reference: Array) -> float:
    return max(float(np.abs(reference).max()), 1e-30)  # a reference of zeros has no scale
