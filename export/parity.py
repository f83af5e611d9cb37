"""Does the engine give what torch gives? OpenVINO in fp32 against the module, at a size other than the traced one.

OpenVINO holds fp32 weights twice, 8 bytes a parameter: 21 GB for SDXL's UNet. Graphs as large as that are compared in
ONNX Runtime, told to fold nothing: it casts each weight when its turn comes and needs little more than the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from export.recipes import EngineRecipe, Reference, called
from export.weights import WEIGHTS
from server.engines.openvino_runtime import OpenVINOEngine
from server.engines.port import Array, Port, Spec

# Both compute in fp32 and differ in the order of sums: the largest difference over the largest value of the reference.
TOLERANCE = 1e-4
_LARGE = 2 << 30  # bytes of half precision weights
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
    return computed(recipe.spec, called(recipe.spec), module, inputs)


def computed(spec: Spec, by: Reference, module: torch.nn.Module, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What a reference gives with the weights of `module`, by output name."""
    with torch.no_grad():
        tensors = by(module, inputs)
    return {port.name: tensor.numpy() for port, tensor in zip(spec.outputs, tensors, strict=True)}


def compare(recipe: EngineRecipe, model: Path, inputs: Mapping[str, Array], expected: Mapping[str, Array]) -> Row:
    """Run an exported engine on `inputs` and compare with what torch gave."""
    weights = model.with_name(WEIGHTS)
    large = weights.is_file() and weights.stat().st_size > _LARGE
    found = (_onnx_runtime if large else _openvino)(model, inputs, list(expected))
    size = ", ".join(f"{port.name} {'x'.join(map(str, inputs[port.name].shape))}" for port in recipe.spec.inputs)
    # An untrained network gives the same whatever it is given: then nothing has been compared. One output of several
    # may be the same everywhere: autoencoders are trained with a fixed deviation, too.
    varied = any(float(tensor.std()) > 0 for tensor in expected.values())
    rows = [
        _row(recipe.spec.name, size, port, found[port.name].astype(np.float64), expected[port.name].astype(np.float64))
        for port in recipe.spec.outputs
    ]
    worst = min(rows, key=lambda row: (row.passed, -row.relative))
    worst = replace(worst, passed=worst.passed and varied)
    return replace(worst, allowed=f"{worst.allowed}, in ONNX Runtime") if large else worst


def _openvino(model: Path, inputs: Mapping[str, Array], outputs: list[str]) -> Mapping[str, Array]:
    return OpenVINOEngine(model, outputs, "float32").run(inputs)


def _onnx_runtime(model: Path, inputs: Mapping[str, Array], outputs: list[str]) -> Mapping[str, Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False  # which keeps what it once had
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True))


def _row(engine: str, size: str, port: Port, found: Array, expected: Array) -> Row:
    largest = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    relative = largest / max(float(np.abs(expected).max()), 1e-12)
    picture = port.dtype == "uint8"
    compared = bool(np.isfinite(found).all()) and bool(expected.any())
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
