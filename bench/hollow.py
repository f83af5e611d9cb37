"""A model repository whose engines compute next to nothing: a real one's ports, settings, tokenizer and card,
less what adapters need.

Against it a call's time is nearly all cost of the service, so that it can be read on a loaded machine too. Knows SD
1.5's four engines; needs onnx (the `export` set).
"""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from server.catalog import read_catalog
from server.engines.port import Array, Spec
from server.families import sd15
from server.families.sd15 import Sd15Card

_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8}
_Graph = tuple[list[NodeProto], dict[str, Array], dict[str, Array], dict[str, Array]]  # with golden inputs and outputs


def write(original: Path, root: Path) -> None:
    """The card `sd15` of `original` with hollow engines."""
    whole = read_catalog(original)["sd15"].card
    assert isinstance(whole, Sd15Card)
    card = replace(whole, control=False, image_side=0, ip_blocks=(), ip_plus=False)
    root.joinpath("sd15.json").write_text(json.dumps(asdict(card)))
    text_encoder, vae_encoder, unet, vae_decoder = sd15.engines(card)
    graphs = {
        text_encoder: _text(card.text_width),
        vae_encoder: _vae_encoder(card.pixels_per_latent),
        unet: _unet(card.text_width),
        vae_decoder: _vae_decoder(card.pixels_per_latent),
    }
    for spec, graph in graphs.items():
        _write(original / spec.name, root / spec.name, spec, graph)


def _text(width: int) -> _Graph:
    """Every text state is its token's number, less the layers left out, more the largest vector's value."""
    nodes = [
        helper.make_node("Unsqueeze", ["skip", "second"], ["skips"]),
        helper.make_node("Sub", ["input_ids", "skips"], ["less"]),
        helper.make_node("Cast", ["less"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["vectors"], ["vector"], keepdims=0),
        helper.make_node("Add", ["numbers", "vector"], ["sum"]),
        helper.make_node("Unsqueeze", ["sum", "last"], ["column"]),
        helper.make_node("Mul", ["column", "row"], ["hidden_states"]),
    ]
    ids = np.arange(77)[None]  # 1 77
    states = np.repeat(ids[..., None], width, axis=2).astype(np.float32)
    constants = {"second": np.array([1]), "last": np.array([2]), "row": np.ones(width, np.float32)}
    inputs = {"input_ids": ids, "skip": np.zeros(1, np.int64), "vectors": np.zeros((1, 1, width), np.float32)}
    return nodes, constants, inputs, {"hidden_states": states}


def _unet(width: int) -> _Graph:
    """The prediction is the sample; one value of each other input is read, so that none can be optimised away."""
    nodes = [
        helper.make_node("ReduceMax", ["encoder_hidden_states"], ["text"], keepdims=0),
        helper.make_node("ReduceMax", ["timestep"], ["time"], keepdims=0),
        helper.make_node("Add", ["text", "time"], ["both"]),
        helper.make_node("Mul", ["both", "nothing"], ["zero"]),
        helper.make_node("Add", ["sample", "zero"], ["prediction"]),
    ]
    sample = np.linspace(-1, 1, 4 * 8 * 8, dtype=np.float32).reshape(1, 4, 8, 8)
    inputs: dict[str, Array] = {
        "sample": sample,
        "timestep": np.ones(1, np.float32),
        "encoder_hidden_states": np.ones((1, 77, width), np.float32),
    }
    return nodes, {"nothing": np.array(0, np.float32)}, inputs, {"prediction": sample}


def _vae_encoder(scale: int) -> _Graph:
    """What the decoder undoes: colours as three latent channels, the fourth is 0."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["levels", "middle"], ["contrasted"]),
        helper.make_node("Cast", ["visible"], ["seen"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["seen", "last"], ["mask"]),
        helper.make_node("Mul", ["contrasted", "mask"], ["masked"]),
        helper.make_node("Div", ["masked", "contrast"], ["colours"]),
        helper.make_node("Transpose", ["colours"], ["large"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["large"], ["three"], kernel_shape=[scale, scale], strides=[scale, scale]),
        helper.make_node("Pad", ["three", "fourth"], ["mean"]),
        helper.make_node("Mul", ["mean", "nothing"], ["std"]),
    ]
    constants: dict[str, Array] = {
        "middle": np.array(128, np.float32),
        "contrast": np.array(50, np.float32),
        "last": np.array([3]),
        "fourth": np.array([0, 0, 0, 0, 0, 1, 0, 0]),
        "nothing": np.array(0, np.float32),
    }
    side = 8 * scale
    inputs: dict[str, Array] = {
        "pixels": np.full((1, side, side, 3), 178, np.uint8),
        "visible": np.ones((1, side, side), np.uint8),
    }
    mean = np.ones((1, 4, 8, 8), np.float32)
    mean[:, 3] = 0
    return nodes, constants, inputs, {"mean": mean, "std": np.zeros_like(mean)}


def _vae_decoder(scale: int) -> _Graph:
    """Three latent channels as colours, blurred up to pixels: a smooth picture, as real ones are."""
    nodes = [
        helper.make_node("Slice", ["latents", "begin", "end", "channels"], ["three"]),
        helper.make_node("Resize", ["three", "", "scales"], ["large"], mode="linear"),
        helper.make_node("Mul", ["large", "contrast"], ["contrasted"]),
        helper.make_node("Add", ["contrasted", "middle"], ["levels"]),
        helper.make_node("Clip", ["levels", "black", "white"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["bytes"], ["pixels"], perm=[0, 2, 3, 1]),
    ]
    constants: dict[str, Array] = {
        "begin": np.array([0]),
        "end": np.array([3]),
        "channels": np.array([1]),
        "scales": np.array([1, 1, scale, scale], np.float32),
        "contrast": np.array(50, np.float32),
        "middle": np.array(128, np.float32),
        "black": np.array(0, np.float32),
        "white": np.array(255, np.float32),
    }
    pixels = np.full((1, 8 * scale, 8 * scale, 3), 128, np.uint8)
    return nodes, constants, {"latents": np.zeros((1, 4, 8, 8), np.float32)}, {"pixels": pixels}


def _write(original: Path, folder: Path, spec: Spec, graph: _Graph) -> None:
    nodes, constants, inputs, outputs = graph
    version = folder / "1"
    version.mkdir(parents=True)
    for path in original.iterdir():
        if path.is_file():  # config.pbtxt and the tokenizer
            shutil.copy(path, folder)
    inputs_declared, outputs_declared = (
        [helper.make_tensor_value_info(port.name, _TYPES[port.dtype], port.shape) for port in ports]
        for ports in (spec.inputs, spec.outputs)
    )
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, spec.name, inputs_declared, outputs_declared, initializers),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    version.joinpath("model.onnx").write_bytes(model.SerializeToString())
    golden = {f"input.{name}": tensor for name, tensor in inputs.items()}
    golden |= {f"output.{name}": tensor for name, tensor in outputs.items()}
    save_file(golden, version / "golden.safetensors")
