"""`python -m export preprocessor`: a network that makes control maps, as an engine of a repository.

Either a depth model that transformers reads, or any ONNX file with a preprocessor's tensors. Knows no checkpoint.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from google.protobuf.message import DecodeError
from safetensors.numpy import save_file
from transformers import AutoModelForDepthEstimation

from export import ExportError, config_pbtxt, parity
from export.recipes import Axis, EngineRecipe, uniform
from export.repository import Progress, all_or_nothing, render
from server.adapters.control import preprocessor
from server.engines.port import Spec

_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean and deviation where no preprocessor_config.json is
_SIDES = Axis(multiple=8, most=1536)
_GOLDEN = {"rows": 1, "picture_height": 64, "picture_width": 96}
_PICTURE = ("uint8", 4, 3)  # type, axes, length of the last


class Depth(torch.nn.Module):
    """A picture to its map: the nearer the brighter, from black to white."""

    def __init__(self, component: torch.nn.Module, side: int, mean: list[float], deviation: list[float]) -> None:
        super().__init__()
        self.component = component
        self.side = side
        self.mean, self.deviation = (torch.tensor(values)[:, None, None] for values in (mean, deviation))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """rows height width 3, uint8 -> the same shape, uint8."""
        height, width = pixels.shape[1:3]
        unit = pixels.permute(0, 3, 1, 2).float() / 255
        square = F.interpolate(unit, size=(self.side, self.side), mode="bilinear")
        depth = cast(Any, self.component)((square - self.mean) / self.deviation).predicted_depth  # rows h w
        whole = F.interpolate(depth[:, None], size=(height, width), mode="bilinear")
        least, most = whole.amin((1, 2, 3), keepdim=True), whole.amax((1, 2, 3), keepdim=True)
        grey = (whole - least) / (most - least).clamp(min=1e-6)
        return (grey * 255).round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()


def main(arguments: list[str]) -> int:
    """0 when the repository was written, 1 with one sentence on stderr when not."""
    parser = argparse.ArgumentParser(
        prog="python -m export preprocessor",
        description="Put a network that makes control maps into a model repository: requests name it as their "
        "preprocessor. An ONNX file takes `pixels` (rows, height, width, 3), uint8, and gives `map`, likewise.",
    )
    parser.add_argument("name", help="what requests call it, such as depth")
    parser.add_argument(
        "--model", required=True, type=Path, help="a folder that AutoModelForDepthEstimation reads, or an ONNX file"
    )
    parser.add_argument("--out", required=True, type=Path, help="the model repository; what else is in it stays")
    given = parser.parse_args(arguments)
    if not re.fullmatch(r"[a-z0-9][a-z0-9_]{0,31}", given.name):
        parser.error(f"name {given.name!r}: lower-case letters, digits and '_', at most 32")
    try:
        row = export(given.name, given.model, given.out, lambda text: print(text, flush=True))
    except (ExportError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    print(f"\n{parity.report([row])}", end="")
    return 0


def export(name: str, model: Path, repository: Path, progress: Progress) -> parity.Row:
    """Raises `ExportError`; then the repository is as it was."""
    spec = preprocessor(name)
    with all_or_nothing(repository) as building:
        if model.is_dir():
            component, depth = _depth(model)
            row = render(_recipe(spec, depth), component, building, progress)
        else:
            row = _copied(spec, model, building)
        if not row.passed:
            raise ExportError(
                f"the engine is not shown to compute rightly; nothing was written\n{parity.report([row])}"
            )
    return row


def _depth(folder: Path) -> tuple[torch.nn.Module, Callable[[torch.nn.Module], torch.nn.Module]]:
    """The model as half precision holds it, and what wraps it."""
    try:
        found = AutoModelForDepthEstimation.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"{folder} is no depth model with safetensors weights: {reason}") from error
    component = cast(torch.nn.Module, found.eval().requires_grad_(False))
    for tensor in component.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
    settings: dict[str, Any] = {}
    if folder.joinpath("preprocessor_config.json").is_file():
        settings = json.loads(folder.joinpath("preprocessor_config.json").read_text())
    backbone = getattr(found.config, "backbone_config", None)
    side = settings.get("size", {}).get("height", getattr(backbone, "image_size", None) or found.config.image_size)
    mean, deviation = settings.get("image_mean", _IMAGENET[0]), settings.get("image_std", _IMAGENET[1])
    return component, lambda module: Depth(module, int(side), mean, deviation)


def _recipe(spec: Spec, wrap: Callable[[torch.nn.Module], torch.nn.Module]) -> EngineRecipe:
    return EngineRecipe(
        spec=spec,
        component="",
        wrap=wrap,
        axes={"rows": Axis(multiple=1, most=16), "picture_height": _SIDES, "picture_width": _SIDES},
        traced={"rows": 2, "picture_height": 96, "picture_width": 128},
        checked={"rows": 1, "picture_height": 160, "picture_width": 64},
        golden=_GOLDEN,
        draws={"pixels": uniform(256, "uint8")},
    )


def _told(value: Any) -> tuple[str, str, int, int]:
    tensor = value.type.tensor_type
    axes = tensor.shape.dim
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return value.name, kind, len(axes), axes[-1].dim_value if len(axes) > 0 else 0


def _copied(spec: Spec, file: Path, building: Path) -> parity.Row:
    """An ONNX file as it is. What it gives is compared between OpenVINO and ONNX Runtime."""
    try:
        graph = onnx.load(file).graph
        onnx.checker.check_model(file)
    except (onnx.checker.ValidationError, DecodeError, ValueError, RuntimeError) as error:
        raise ExportError(f"{file} is no ONNX model: {' '.join(str(error).split())}") from error
    found = {kind: [_told(value) for value in values] for kind, values in (("in", graph.input), ("out", graph.output))}
    wanted = {"in": [("pixels", *_PICTURE)], "out": [("map", *_PICTURE)]}
    if found != wanted:
        raise ExportError(
            f"{file} is no preprocessor: it takes {found['in']} and gives {found['out']} (name, type, axes, length of "
            f"the last); it must take {wanted['in']} and give {wanted['out']}"
        )
    version = building / spec.name / "1"
    version.mkdir(parents=True)
    text = config_pbtxt.render(spec, "openvino", {"precision": "float32"})
    version.parent.joinpath("config.pbtxt").write_text(text)
    onnx.save(onnx.load(file), version / "model.onnx")  # in one piece
    session = onnxruntime.InferenceSession(str(version / "model.onnx"), providers=["CPUExecutionProvider"])
    random = np.random.RandomState(0)
    shape = (1, _GOLDEN["picture_height"], _GOLDEN["picture_width"], 3)
    inputs = {"pixels": (random.random_sample(shape) * 256).astype(np.uint8)}
    outputs = {"map": session.run(["map"], inputs)[0]}
    golden = {"input.pixels": inputs["pixels"], "output.map": outputs["map"]}
    save_file(golden, version / "golden.safetensors")
    return parity.compare(_recipe(spec, lambda module: module), version / "model.onnx", inputs, outputs)
