"""Weights as half precision safetensors, and where each tensor lies in the file.

The file is the checkpoint's own, byte for byte, where that already is one half precision file under the module's names;
else it is written anew. Knows nothing of ONNX.
"""

import json
import math
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open

from export import ExportError
from export.checkpoint import AGAIN, Checkpoint

WEIGHTS = "weights.safetensors"  # beside the graph
_MOST_HEADER_BYTES = 100 << 20  # the format's own limit
_WIDER = (torch.float32, torch.float64, torch.bfloat16)  # than half precision
_FIT = "engines' weights are stored in half precision, take a checkpoint whose weights fit it"
_MOST_LOST = 0.01  # of a matrix's norm by rounding to half precision, which usually takes 0.0002


@dataclass(frozen=True)
class Stored:
    """One tensor of a safetensors file."""

    dtype: str  # "F16", "F32", ...
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    length: int  # bytes


def stored_tensors(path: Path) -> dict[str, Stored]:
    """The header of a safetensors file. Raises `ExportError` when it is not one."""
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else _MOST_HEADER_BYTES + 1
        header = file.read(size) if size <= _MOST_HEADER_BYTES else b""
    try:
        entries: dict[str, Any] = json.loads(header)
        entries.pop("__metadata__", None)
        found = {
            name: Stored(
                entry["dtype"],
                tuple(entry["shape"]),
                8 + size + entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} is not a safetensors file, or cut short: {AGAIN}") from error
    if path.stat().st_size < max((tensor.offset + tensor.length for tensor in found.values()), default=0):
        raise ExportError(f"{path} is cut short: the last tensor ends beyond the file; {AGAIN}")
    return found


def check_weights(checkpoint: Checkpoint, component: str) -> None:
    """Raises `ExportError` when a component's weights are not there, cut short or not finite, or when half precision
    cannot hold them. Reads every file once, tensor by tensor."""
    for file in checkpoint.weights(component).files:
        stored_tensors(file)
        broken, large, lost = [], [], []
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  it is no mapping
                tensor = opened.get_tensor(name)
                if not bool(torch.isfinite(tensor).all()):
                    broken.append(name)
                elif tensor.dtype in _WIDER:
                    half = tensor.half()
                    if not bool(torch.isfinite(half).all()):
                        large.append(name)
                    elif tensor.dim() > 1 and float((tensor - half).norm()) > _MOST_LOST * float(tensor.norm()):
                        lost.append(name)
        if broken:
            raise ExportError(f"{file} holds NaN or infinity in {_some(broken)}: the checkpoint is damaged; {AGAIN}")
        if large:
            raise ExportError(
                f"{file} holds values above 65504, the most half precision can, in {_some(large)}: {_FIT}"
            )
        if lost:
            raise ExportError(
                f"{file} holds values too small for half precision in {_some(lost)}, which would lose more than "
                f"{_MOST_LOST:.0%} of itself: {_FIT}"
            )


def load_component(kind: type[Any], checkpoint: Checkpoint, component: str) -> torch.nn.Module:
    """A component in float32 holding exactly what will be stored: every weight rounded to half precision.

    Raises `ExportError` for missing or misshapen weights.
    """
    weights = checkpoint.weights(component)
    folder = checkpoint.path(component)
    try:
        module, notes = kind.from_pretrained(
            folder,
            variant=weights.variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, by name
            torch_dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"{weights.files[0]} does not load as {kind.__name__}: {reason}; {AGAIN}") from error
    missing, misshapen = sorted(notes["missing_keys"]), sorted(str(entry) for entry in notes["mismatched_keys"])
    if missing or misshapen:
        raise ExportError(
            f"{weights.files[0]} does not fit {folder / 'config.json'}: "
            f"missing {_some(missing) or 'nothing'}; of another shape {_some(misshapen) or 'none'}; {AGAIN}"
        )
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
    return cast(torch.nn.Module, module.eval().requires_grad_(False))


def write_weights(module: torch.nn.Module, checkpoint: Checkpoint, component: str, path: Path) -> None:
    """Write a loaded component's weights to `path`."""
    wanted = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    files = checkpoint.weights(component).files
    if len(files) == 1 and _holds(stored_tensors(files[0]), wanted):
        shutil.copyfile(files[0], path)
    else:
        write_half({name: tensor.shape for name, tensor in wanted.items()}, wanted.values(), path)


def write_half(shapes: Mapping[str, Sequence[int]], tensors: Iterable[torch.Tensor], path: Path) -> None:
    """A safetensors file in half precision, converted tensor by tensor: a UNet of 10 GB leaves no room for a copy.

    `tensors` come in the order of `shapes`.
    """
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            file.write(tensor.half().contiguous().numpy().tobytes())


def _holds(stored: Mapping[str, Stored], wanted: Mapping[str, torch.Tensor]) -> bool:
    """Is every wanted tensor stored in half precision under its own name and shape?"""
    return all(
        name in stored and (stored[name].dtype, stored[name].shape) == ("F16", tuple(tensor.shape))
        for name, tensor in wanted.items()
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
