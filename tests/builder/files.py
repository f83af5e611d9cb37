"""What the builder's tests share: the default engines' shapes, random files, what a variant's graph reads."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import save_file

from server.builder.reading import Tensors
from server.builder.shapes import EngineShapes, Shapes, read_shapes
from server.builder.variant import Source, build
from server.catalog import read_catalog
from server.engines.port import Array

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = ROOT / "model_repository"


@cache
def shapes() -> Shapes:
    """Of the default checkpoints."""
    return read_shapes(REPOSITORY, [engine.card for engine in read_catalog(REPOSITORY).values()])


def engine(card: str) -> EngineShapes:
    return shapes()[card]


def saved(tensors: Mapping[str, Array], path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file of the library's own making."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, path, dict(metadata) if metadata is not None else None)
    return path


def some_random(seed: int, *shape: int, scale: float = 0.1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(scale)


def variant(tmp_path: Path, graph: str, *sources: Source, repository: Path = REPOSITORY) -> Path:
    """A variant of an engine, in a folder of its own."""
    folder = tmp_path / "variants" / f"{graph}--{sum(1 for _ in tmp_path.rglob('variant.json')):016x}"
    build(folder, repository, graph, sources)
    return folder


def weights(folder: Path) -> dict[str, Array]:
    """The weights that a model's graph names, read from where it says."""
    model = onnx.load(str(folder / "1" / "model.onnx"), load_external_data=False)
    files = {path.name: path.read_bytes() for path in folder.joinpath("1").glob("*.safetensors")}
    found = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            values = np.frombuffer(
                files[place["location"]], np.float16, int(place["length"]) // 2, int(place["offset"])
            )
            found[tensor.name] = values.reshape(tuple(tensor.dims))
    return found


def steps_apart(first: Array, second: Array) -> int:
    """The most steps of half precision between two arrays' values."""
    ordered = [
        np.where(bits < 0, -(bits & 0x7FFF), bits)
        for bits in (
            np.ascontiguousarray(values, np.float16).view(np.int16).astype(np.int32) for values in (first, second)
        )
    ]
    return int(np.abs(ordered[0] - ordered[1]).max())


def header(path: Path) -> Sequence[str]:
    """The names in a file."""
    with Tensors(path) as tensors:
        return list(tensors.stored)
