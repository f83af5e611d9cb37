"""The tensors that a model.onnx begins with, for who cannot afford onnx (0.3 s). Knows nothing of what they are for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from server.protobuf import fields, numbers

# Of onnx.proto3, whose numbers do not change: ModelProto, GraphProto, TensorProto, StringStringEntryProto.
_GRAPH, _INITIALIZER, _DIMS, _NAME, _EXTERNAL_DATA, _KEY, _VALUE = 7, 5, 1, 8, 13, 1, 2


@dataclass(frozen=True)
class Initializer:
    """One of them."""

    name: str
    shape: tuple[int, ...]
    beside: Mapping[str, str]  # where it lies in a file beside the graph: "location", "offset", "length"; empty: within
    stored: int  # bytes of the graph's own that it takes


def initializers(model: Path) -> tuple[Initializer, ...]:
    """Raises `OSError`, and `ValueError` for what is no model."""
    try:
        (graph,) = fields(memoryview(model.read_bytes()), _GRAPH)
        return tuple(map(_initializer, fields(graph, _INITIALIZER)))
    except IndexError as error:
        raise ValueError(f"{model} ends within a field") from error


def _initializer(tensor: memoryview) -> Initializer:
    entries = [
        (str(key, "utf-8"), str(value, "utf-8"))
        for entry in fields(tensor, _EXTERNAL_DATA)
        for key, value in zip(fields(entry, _KEY), fields(entry, _VALUE), strict=True)
    ]
    name = b"".join(fields(tensor, _NAME))
    return Initializer(str(name, "utf-8"), tuple(numbers(tensor, _DIMS)), dict(entries), len(tensor))
