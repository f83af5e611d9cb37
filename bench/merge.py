"""How long a LoRA takes to merge into a UNet of SDXL's published size, what that writes, and the memory it needs.

python -m bench.merge [--folder FOLDER]    # 5.2 GB of random weights there, gone afterwards; needs the export set
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from bench.shapes import FULL
from server.builder.merge import Place, write
from server.builder.variant import Source, build
from server.engines.port import Array

_RANK = 32
_GRAPH = "big_unet"
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_VALUES = 1 << 24  # random values that are repeated: drawing 2.6 billion would take longer than all else


def _shapes() -> Mapping[str, tuple[int, ...]]:
    kind, config = FULL["sdxl"].parts["unet"]
    with torch.device("meta"):
        module = kind(**config)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _write_engine(repository: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """An engine's files, with a graph that names all weights and computes nothing of them."""
    version = repository / _GRAPH / "1"
    version.mkdir(parents=True)
    noise = np.random.default_rng(1).standard_normal(_VALUES, np.float32).astype(np.float16) * np.float16(0.02)
    places = write(
        version / "weights.safetensors",
        shapes,
        ((name, np.resize(noise, shape)) for name, shape in shapes.items()),
    )
    graph = helper.make_graph([], "weights", [], [], [_external(name, shapes[name], places[name]) for name in shapes])
    version.joinpath("model.onnx").write_bytes(helper.make_model(graph, ir_version=10).SerializeToString())
    save_file({"input.x": np.ones(1, np.float32)}, version / "golden.safetensors")
    repository.joinpath(_GRAPH, "config.pbtxt").write_text(f'name: "{_GRAPH}"\n')
    repository.joinpath("big.json").write_text(json.dumps({"family": "sdxl"}))


def _external(name: str, shape: Sequence[int], place: Place) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", place.file), ("offset", place.offset), ("length", place.length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _write_lora(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Of all attention; returns how many values it changes."""
    random = np.random.default_rng(2)
    tensors: dict[str, Array] = {}
    changed = 0
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module.endswith(_ATTENTION):
            for letter, sides in (("A", (_RANK, shape[1])), ("B", (shape[0], _RANK))):
                values = random.standard_normal(sides, np.float32) * np.float32(0.02)
                tensors[f"unet.{module}.lora_{letter}.weight"] = values.astype(np.float16)
            changed += math.prod(shape)
    save_file(tensors, path)
    return changed


def _build(folder: Path, loras: Iterable[Path]) -> None:
    """In a process of its own, whose memory is told."""
    begin, used = time.perf_counter(), time.process_time()
    sources = [Source("lora", path, 0.8) for path in loras]
    size = build(folder / "variants" / f"{_GRAPH}--0", folder / "repository", _GRAPH, sources)
    seconds, processor = time.perf_counter() - begin, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{len(sources)} LoRA(s): {seconds:.1f} s, {processor:.1f} s of processor, {size / 1e6:.0f} MB written, "
        f"{size / 1e6 / seconds:.0f} MB/s, at most {peak / 1e6:.0f} MB of memory"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    parser.add_argument("--build", type=Path, nargs="+", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build is not None:
        _build(options.folder, options.build)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        shapes = _shapes()
        _write_engine(folder / "repository", shapes)
        loras = [folder / "a.safetensors", folder / "b.safetensors"]
        changed, _ = (_write_lora(path, shapes) for path in loras)
        total = sum(map(math.prod, shapes.values()))
        print(f"{total / 1e6:.0f} million values, {changed / 1e6:.0f} changed; load average {os.getloadavg()[0]:.1f}")
        for files in (loras[:1], loras):
            command = [sys.executable, "-m", "bench.merge", "--folder", str(folder), "--build", *map(str, files)]
            subprocess.run(command, check=True)
            subprocess.run(["rm", "-r", str(folder / "variants")], check=True)


if __name__ == "__main__":
    main()
