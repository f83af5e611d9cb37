"""A model repository of tiny engines, for tests that need real ones: written in milliseconds, loaded in one second.

Together they have what real engines have: external weights in fp16 safetensors with a Cast, free axes, int64 ids,
uint8 pictures. `spin` runs as long as it is told to. `COMPUTE` says what each answers, in numpy.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from server.engines.port import Port, Spec, Tensors

MIX = Spec(
    name="toy_mix",
    inputs=(
        Port("sample", "float32", ("rows", 2, "height", "width")),
        Port("timestep", "float32", ("rows",)),
        Port("states", "float32", ("rows", "tokens", 3)),
    ),
    outputs=(Port("prediction", "float32", ("rows", 2, "height", "width")),),
    max_rows=16,
)
WORDS = Spec(
    name="toy_words",
    inputs=(Port("input_ids", "int64", ("rows", 5)),),
    outputs=(Port("hidden_states", "float32", ("rows", 5, 3)), Port("mean", "float32", ("rows",))),
    max_rows=16,
)
PICTURE = Spec(
    name="toy_picture",
    inputs=(Port("latents", "float32", ("rows", 3, "height", "width")),),
    outputs=(Port("pixels", "uint8", ("rows", "picture_height", "picture_width", 3)),),
    max_rows=1,
)
SPIN = Spec(
    name="toy_spin",
    inputs=(Port("turns", "int64", ("rows",)),),
    outputs=(Port("value", "float32", ("rows", 64, 64)),),
    max_rows=16,
)
PICKY = Spec(
    name="toy_picky",
    inputs=(Port("x", "float32", ("rows", "length")),),  # fails in the middle of an execution unless length is 3
    outputs=(Port("y", "float32", ("rows", "length")),),
    max_rows=16,
)
NARROW = replace(SPIN, name="toy_narrow")  # has a queue of one place, and nobody waits there longer than 0.2 s
WIDE = Spec(
    name="toy_wide",
    inputs=(Port("x", "float32", ("rows", 2048)),),
    outputs=(Port("y", "float32", ("rows", 2048)),),
    max_rows=16,
)
OTHER_MIXES = ("toy_mix--1", "toy_mix--2")  # the same engine, for tests that add engines
WIDE_PARAMETERS = 4 * 2048 * 2048  # enough to be weighed: 32 MiB in fp16
SPECS = (MIX, WORDS, PICTURE, SPIN)  # those that answer everything that fits their spec

_RANDOM = np.random.RandomState(0)
_CHANNELS = _RANDOM.standard_normal((2, 1, 1)).astype(np.float16)
_WORDS = _RANDOM.standard_normal((11, 3)).astype(np.float16)
_TURN = (np.eye(64) * 0.999).astype(np.float16)


def mix(tensors: Tensors) -> dict[str, npt.NDArray[Any]]:
    """What `toy_mix` computes."""
    context = tensors["states"].mean(axis=(1, 2)) + tensors["timestep"]  # rows
    return {"prediction": tensors["sample"] * _CHANNELS.astype(np.float32) + context[:, None, None, None]}


def words(tensors: Tensors) -> dict[str, npt.NDArray[Any]]:
    """What `toy_words` computes."""
    states = _WORDS.astype(np.float32)[tensors["input_ids"]]  # rows 5 3
    return {"hidden_states": states, "mean": states.mean(axis=(1, 2))}


def picture(tensors: Tensors) -> dict[str, npt.NDArray[Any]]:
    """What `toy_picture` computes."""
    clipped = np.clip(tensors["latents"], np.float32(0), np.float32(1)) * np.float32(255)
    return {"pixels": np.rint(clipped).astype(np.uint8).transpose(0, 2, 3, 1)}


def spin(tensors: Tensors) -> dict[str, npt.NDArray[Any]]:
    """What `toy_spin` computes."""
    value = np.ones((len(tensors["turns"]), 64, 64), np.float32)
    for _ in range(int(tensors["turns"].max())):
        value = value @ _TURN.astype(np.float32)
    return {"value": value}


def picky(tensors: Tensors) -> dict[str, npt.NDArray[Any]]:
    """What `toy_picky` computes; raises `ValueError` for a length it cannot add."""
    return {"y": tensors["x"] + np.arange(3, dtype=np.float32)}


COMPUTE = {
    PICKY.name: picky,
    MIX.name: mix,
    WORDS.name: words,
    PICTURE.name: picture,
    SPIN.name: spin,
    NARROW.name: spin,
    WIDE.name: lambda tensors: {"y": tensors["x"]},
    **dict.fromkeys(OTHER_MIXES, mix),
}


def example(spec: Spec, seed: int = 0, **axes: int) -> dict[str, npt.NDArray[Any]]:
    """Inputs that fit the spec; free axes have length 2 unless told, and rows never more than one call may carry."""
    axes = {"rows": min(2, spec.max_rows), **axes}
    random = np.random.RandomState(seed)
    tensors: dict[str, npt.NDArray[Any]] = {}
    for port in spec.inputs:
        shape = [length if isinstance(length, int) else axes.get(length, 2) for length in port.shape]
        if port.dtype == "float32":
            tensors[port.name] = random.standard_normal(shape).astype(np.float32)
        else:
            tensors[port.name] = random.randint(1, 11, shape).astype(port.dtype)
    return tensors


def write_repository(root: Path) -> None:
    """All engines with their golden tensors."""
    node = helper.make_node
    _write(
        root,
        MIX,
        {"channels": _CHANNELS, "of_context": np.array([1, 2]), "of_picture": np.array([1, 2, 3])},
        [
            node("Cast", ["channels"], ["scale"], to=TensorProto.FLOAT),
            node("Mul", ["sample", "scale"], ["scaled"]),
            node("ReduceMean", ["states", "of_context"], ["mean"], keepdims=0),
            node("Add", ["mean", "timestep"], ["context"]),
            node("Unsqueeze", ["context", "of_picture"], ["spread"]),
            node("Add", ["scaled", "spread"], ["prediction"]),
        ],
    )
    _write(
        root,
        WORDS,
        {"table": _WORDS, "of_text": np.array([1, 2])},
        [
            node("Cast", ["table"], ["vectors"], to=TensorProto.FLOAT),
            node("Gather", ["vectors", "input_ids"], ["hidden_states"]),
            node("ReduceMean", ["hidden_states", "of_text"], ["mean"], keepdims=0),
        ],
    )
    _write(
        root,
        PICTURE,
        {"low": np.float32(0), "high": np.float32(1), "levels": np.float32(255)},
        [
            node("Clip", ["latents", "low", "high"], ["clipped"]),
            node("Mul", ["clipped", "levels"], ["scaled"]),
            node("Round", ["scaled"], ["rounded"]),
            node("Cast", ["rounded"], ["bytes"], to=TensorProto.UINT8),
            node("Transpose", ["bytes"], ["pixels"], perm=[0, 2, 3, 1]),
        ],
    )
    value = helper.make_tensor_value_info("value_in", TensorProto.FLOAT, [None, 64, 64])
    turned = helper.make_tensor_value_info("value_out", TensorProto.FLOAT, [None, 64, 64])
    flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go_in", "go_out")]
    body = helper.make_graph(
        [node("MatMul", ["value_in", "matrix"], ["value_out"]), node("Identity", ["go_in"], ["go_out"])],
        "turn",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), flags[0], value],
        [flags[1], turned],
    )
    three = {"three": np.arange(3, dtype=np.float32)}
    _write(root, PICKY, three, [node("Add", ["x", "three"], ["y"])], length=3)
    for spec in (SPIN, NARROW):
        _write(
            root,
            spec,
            {"turn": _TURN, "yes": np.array(True), "square": np.array([64, 64]), "one": np.float32(1)},
            [
                node("Cast", ["turn"], ["matrix"], to=TensorProto.FLOAT),
                node("ReduceMax", ["turns"], ["count"], keepdims=0),
                node("Shape", ["turns"], ["rows"]),
                node("Concat", ["rows", "square"], ["shape"], axis=0),
                node("Expand", ["one", "shape"], ["ones"]),
                node("Loop", ["count", "yes", "ones"], ["value"], body=body),
            ],
        )
    with (root / NARROW.name / "config.pbtxt").open("a") as config:
        config.write("dynamic_batching { default_queue_policy { max_queue_size: 1 ")
        config.write("timeout_action: REJECT default_timeout_microseconds: 200000 } }\n")


def copy_engine(repository: Path, engine: str, to: Path, name: str) -> None:
    """The same engine under another name, in another repository."""
    shutil.copytree(repository / engine, to / name)
    config = to / name / "config.pbtxt"
    config.write_text(config.read_text().replace(f'name: "{engine}"', f'name: "{name}"', 1))


def write_wide(root: Path) -> None:
    """`toy_wide` alone, whose weights are the most of it. Its golden tensors are not meant to be right."""
    matrix = np.random.RandomState(0).standard_normal((2048, 2048)).astype(np.float16)
    names = ("x", "first", "second", "third", "y")
    _write(
        root,
        WIDE,
        {f"matrix_{i}": matrix for i in range(4)},
        [
            node
            for i in range(4)
            for node in (
                helper.make_node("Cast", [f"matrix_{i}"], [f"single_{i}"], to=TensorProto.FLOAT),
                helper.make_node("MatMul", [names[i], f"single_{i}"], [names[i + 1]]),
            )
        ],
    )


def _write_golden(root: Path, spec: Spec, axes: Mapping[str, int]) -> None:
    inputs = example(spec, **axes)
    outputs = COMPUTE[spec.name](inputs)
    tensors = {f"input.{name}": tensor for name, tensor in inputs.items()}
    tensors |= {f"output.{name}": np.ascontiguousarray(tensor) for name, tensor in outputs.items()}
    save_file(tensors, root / spec.name / "1" / "golden.safetensors")


def _write(
    root: Path, spec: Spec, constants: Mapping[str, Any], nodes: list[onnx.NodeProto], **golden_axes: int
) -> None:
    """One engine's folder; float16 constants become weights in safetensors, the others stay in the graph."""
    folder = root / spec.name / "1"
    folder.mkdir(parents=True)
    weights = {name: value for name, value in constants.items() if np.asarray(value).dtype == np.float16}
    save_file(weights, folder / "weights.safetensors")
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8}
    inputs = [helper.make_tensor_value_info(port.name, kinds[port.dtype], port.shape) for port in spec.inputs]
    outputs = [helper.make_tensor_value_info(port.name, kinds[port.dtype], port.shape) for port in spec.outputs]
    initializers = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items() if n not in weights]
    initializers += _external(folder / "weights.safetensors")
    graph = helper.make_graph(nodes, spec.name, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (root / spec.name / "config.pbtxt").write_text(_config(spec))
    _write_golden(root, spec, golden_axes)


def _external(weights: Path) -> list[onnx.TensorProto]:
    """The tensors of a safetensors file as ONNX external data."""
    raw = weights.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    tensors = []
    for name, entry in json.loads(raw[8 : 8 + length]).items():
        begin, end = entry["data_offsets"]
        tensor = TensorProto(
            name=name, data_type=TensorProto.FLOAT16, dims=entry["shape"], data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", weights.name), ("offset", 8 + length + begin), ("length", end - begin)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    return tensors


def _config(spec: Spec) -> str:
    kinds = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8"}

    def dims(lengths: list[int]) -> str:
        return f"dims: {lengths}" if lengths else "dims: [1] reshape: { shape: [] }"  # Triton refuses no dims

    def ports(declared: tuple[Port, ...]) -> str:
        return ", ".join(
            f'{{ name: "{port.name}" data_type: {kinds[port.dtype]} '
            f"{dims([length if isinstance(length, int) else -1 for length in port.shape[1:]])} }}"
            for port in declared
        )

    return (
        f'name: "{spec.name}"\nbackend: "openvino"\nmax_batch_size: {spec.max_rows}\n'
        f"input [{ports(spec.inputs)}]\noutput [{ports(spec.outputs)}]\n"
        'default_model_filename: "model.onnx"\ninstance_group [{ kind: KIND_CPU count: 1 }]\n'
        'parameters { key: "precision" value { string_value: "float32" } }\n'
    )
