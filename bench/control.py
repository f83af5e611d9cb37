"""ControlNet and UNet in Triton: as one exported graph, or as an ensemble that passes residuals from engine to engine?

python -m bench.control [--checkpoint FOLDER] [--side PIXELS] [--steps N]    # needs the export set; minutes
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tritonclient.grpc import aio as triton

from export import config_pbtxt
from export.checkpoint import open_checkpoint
from export.recipes import EngineRecipe, examples, sd15
from export.recipes.control import Controlled
from export.weights import load_component
from server.engines import leftovers
from server.engines.port import Array, Port, Spec
from server.engines.supervisor import EmbeddedTriton

_CHECKPOINT = Path("demo/checkpoints/sd15")
_TYPES = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}


class _Residuals(torch.nn.Module):
    """The ControlNet alone, its residuals scaled."""

    def __init__(self, one: Controlled) -> None:
        super().__init__()
        self.component = one.controlnet

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        control: torch.Tensor,
        control_scale: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        shown = torch.where(control[..., 3:] > 0, control[..., :3].float() / 255, -1.0).permute(0, 3, 1, 2)
        down, middle = self.component(sample, timestep, encoder_hidden_states, shown, return_dict=False)
        return tuple(residual * control_scale[:, None, None, None] for residual in (*down, middle))


class _Taking(torch.nn.Module):
    """The UNet alone, told the residuals."""

    def __init__(self, one: Controlled) -> None:
        super().__init__()
        self.component = one.unet

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        *residuals: torch.Tensor,
    ) -> torch.Tensor:
        result = cast(Any, self.component)(
            sample,
            timestep,
            encoder_hidden_states,
            down_block_additional_residuals=residuals[:-1],
            mid_block_additional_residual=residuals[-1],
            return_dict=False,
        )
        return cast(torch.Tensor, result[0])


def _write(spec: Spec, module: torch.nn.Module, given: Mapping[str, Array], folder: Path) -> None:
    """By torch's older exporter, which takes seconds where that of `export/` takes minutes: all engines alike."""
    version = folder / spec.name / "1"
    version.mkdir(parents=True)
    ports = (*spec.inputs, *spec.outputs)
    free = {
        port.name: {axis: str(name) for axis, name in enumerate(port.shape) if isinstance(name, str)} for port in ports
    }
    torch.onnx.export(
        module,
        tuple(torch.from_numpy(given[port.name]) for port in spec.inputs),
        version / "model.onnx",
        dynamo=False,
        opset_version=18,
        input_names=[port.name for port in spec.inputs],
        output_names=[port.name for port in spec.outputs],
        dynamic_axes=free,
    )
    text = config_pbtxt.render(spec, "openvino", {"precision": "float32"})
    version.parent.joinpath("config.pbtxt").write_text(text)


def _ensemble(one: Spec, plain: Spec, residuals: tuple[Port, ...], folder: Path) -> None:
    (folder / "ensemble" / "1").mkdir(parents=True)
    text = config_pbtxt.render(replace(one, name="ensemble"), "openvino", {})
    text = text.replace(", reshape { shape: [] }", "")  # its engines' own affair
    kept = [line for line in text.splitlines() if not line.startswith(("backend", "default_model", "instance_group"))]

    def maps(kind: str, names: Mapping[str, str]) -> str:
        return " ".join(f'{kind} {{ key: "{name}" value: "{value}" }}' for name, value in names.items())

    passed = {port.name: port.name for port in residuals}
    first = maps("input_map", {port.name: port.name for port in one.inputs}) + " " + maps("output_map", passed)
    second = maps("input_map", {port.name: port.name for port in plain.inputs} | passed)
    second += " " + maps("output_map", {"prediction": "prediction"})
    steps = ", ".join(
        f'{{ model_name: "{name}" model_version: -1 {told} }}'
        for name, told in (("residuals", first), ("taking", second))
    )
    kept += ['platform: "ensemble"', f"ensemble_scheduling {{ step [ {steps} ] }}"]
    (folder / "ensemble" / "config.pbtxt").write_text("\n".join(kept) + "\n")


def _render(checkpoint: Path, folder: Path) -> tuple[EngineRecipe, dict[str, float]]:
    """The three engines and the ensemble. Gives the template's recipe, and of each residual the bytes that one latent
    pixel of one picture takes."""
    opened = open_checkpoint(str(checkpoint), None, ())
    card = sd15.card(opened, "sd15", "", None)
    (recipe,) = (one.engine for one in sd15.templates(opened, card) if one.engine.spec.name == "sd15_unet_control")
    (plain,) = (each.spec for each in sd15.recipes(opened, card) if each.spec.name == "sd15_unet")
    module = recipe.wrap(load_component(sd15.COMPONENTS["unet"], opened, "unet"))
    assert isinstance(module, Controlled)
    given = examples(recipe, recipe.traced, 0)
    with torch.no_grad():
        tensors = _Residuals(module)(*(torch.from_numpy(given[port.name]) for port in recipe.spec.inputs))
    residuals = tuple(
        Port(f"residual_{index}", "float32", ("rows", tensor.shape[1], f"height_{index}", f"width_{index}"))
        for index, tensor in enumerate(tensors)
    )
    given |= {port.name: tensor.numpy() for port, tensor in zip(residuals, tensors, strict=True)}
    one = replace(recipe.spec, name="one")
    _write(one, module, given, folder)
    _write(replace(one, name="residuals", outputs=residuals), _Residuals(module), given, folder)
    taking = replace(plain, name="taking", inputs=(*plain.inputs, *residuals))
    _write(taking, _Taking(module), given, folder)
    _ensemble(one, plain, residuals, folder)
    pixels = given["sample"].shape[0] * given["sample"].shape[2] * given["sample"].shape[3]
    return replace(recipe, spec=one), {port.name: given[port.name].nbytes / pixels for port in residuals}


def _inputs(recipe: EngineRecipe, side: int) -> dict[str, Array]:
    lengths = {"rows": 2, "height": side // 8, "width": side // 8, "tokens": 77}
    return examples(recipe, {**lengths, "picture_height": side, "picture_width": side}, 1)


async def _timed(client: Any, model: str, recipe: EngineRecipe, inputs: Mapping[str, Array], steps: int) -> Any:
    """Milliseconds of each step, and the prediction."""
    tensors = []
    for port in recipe.spec.inputs:
        array = inputs[port.name].reshape(-1, 1) if len(port.shape) == 1 else inputs[port.name]
        tensor = triton.InferInput(port.name, list(array.shape), _TYPES[port.dtype])
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    taken = []
    for step in range(steps + 2):
        start = time.perf_counter()
        result = await client.infer(model, tensors)
        if step >= 2:  # the first ones allocate
            taken.append(1000 * (time.perf_counter() - start))
    return taken, result.as_numpy("prediction")


def _held(mark: str) -> int:
    """Bytes of the processes that hold engines of the Triton whose files lie under `mark`; what is shared, by share."""
    held = 0
    for pid, line in leftovers.command_lines():
        if mark in line and "_0_0" in line:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            held += 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return held


async def _measure(checkpoint: Path, side: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        recipe, residuals = await asyncio.to_thread(_render, checkpoint, Path(folder))
        inputs = _inputs(recipe, side)
        memory, predictions, times = {}, {}, {}
        for model, engines in (("one", ["one"]), ("ensemble", ["residuals", "taking", "ensemble"])):
            async with EmbeddedTriton(Path(folder), Path(cache)) as supervisor:
                client = triton.InferenceServerClient(supervisor.address)
                for engine in engines:
                    await client.load_model(engine)
                times[model], predictions[model] = await _timed(client, model, recipe, inputs, steps)
                memory[model] = _held(supervisor.log_file.parent.name)
                await client.close()
        moved = 2 * (side // 8) ** 2 * sum(residuals.values())
        gap = float(np.abs(predictions["one"] - predictions["ensemble"]).max() / np.abs(predictions["one"]).max())
        print(
            f"\n{side}x{side}, 2 rows, {steps} steps; load average {os.getloadavg()[0]:.1f}; "
            f"results differ by {gap:.1e}"
        )
        print("| | ms a step, quietest quarter | median | memory of the engines |\n|---|---|---|---|")
        for model in times:
            quiet = statistics.mean(sorted(times[model])[: max(1, steps // 4)])
            middle = statistics.median(times[model])
            print(f"| {model} | {quiet:.1f} | {middle:.1f} | {memory[model] / 2**20:.0f} MiB |")
        print(
            f"residuals: {len(residuals)} tensors, {moved / 2**20:.2f} MiB a step from engine to engine in the ensemble"
        )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.control", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=_CHECKPOINT, help="of Stable Diffusion 1.5's shape")
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    asyncio.run(_measure(given.checkpoint, given.side, given.steps))


if __name__ == "__main__":
    main()
