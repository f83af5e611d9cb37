"""Does the engine give what torch gives? OpenVINO in fp32 against the module, at a size other than the traced one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from export.recipes import EngineRecipe
from server.engines.openvino_runtime import OpenVINOEngine
from server.engines.port import Array, Port

# Both compute in fp32 and differ in the order of sums: the largest difference over the largest value of the reference.
TOLERANCE = 1e-4
_STEP = 1.0  # a uint8 picture may round the other way


@dataclass(frozen=True)
class Row:
    """One engine compared at one size; of several outputs the one that is furthest off."""

    engine: str
    size: str
    largest_difference: float
    relative: float
    allowed: str
    passed: bool


def reference(recipe: EngineRecipe, module: torch.nn.Module, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What torch gives for the inputs, by output name."""
    with torch.no_grad():
        result = module(*(torch.from_numpy(inputs[port.name]) for port in recipe.spec.inputs))
    tensors = result if isinstance(result, tuple) else (result,)
    return {port.name: tensor.numpy() for port, tensor in zip(recipe.spec.outputs, tensors, strict=True)}


def compare(recipe: EngineRecipe, model: Path, inputs: Mapping[str, Array], expected: Mapping[str, Array]) -> Row:
    """Run an exported engine on `inputs` and compare with what torch gave."""
    engine = OpenVINOEngine(model, list(expected), "float32")
    found = engine.run(inputs)
    size = ", ".join(f"{port.name} {'x'.join(map(str, inputs[port.name].shape))}" for port in recipe.spec.inputs)
    rows = [
        _row(recipe.spec.name, size, port, found[port.name].astype(np.float64), expected[port.name].astype(np.float64))
        for port in recipe.spec.outputs
    ]
    return min(rows, key=lambda row: (row.passed, -row.relative))


def _row(engine: str, size: str, port: Port, found: Array, expected: Array) -> Row:
    largest = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    relative = largest / max(float(np.abs(expected).max()), 1e-12)
    picture = port.dtype == "uint8"
    # An untrained network gives zeros whatever it is given: then nothing has been compared.
    compared = bool(np.isfinite(found).all()) and float(expected.std()) > 0
    return Row(
        engine=engine,
        size=size,
        largest_difference=largest,
        relative=relative,
        allowed=f"{_STEP:g} of 255" if picture else f"{TOLERANCE:g} relative",
        passed=compared and (largest <= _STEP if picture else relative <= TOLERANCE),
    )


def report(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    head = "| engine | size | largest difference | relative | allowed | verdict |\n|---|---|---|---|---|---|\n"
    return head + "".join(
        f"| {row.engine} | {row.size} | {row.largest_difference:.2e} | {row.relative:.2e} | {row.allowed} "
        f"| {'equal' if row.passed else 'NOT EQUAL'} |\n"
        for row in rows
    )
