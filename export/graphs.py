"""A torch module to an ONNX graph without weights: every tensor of the state dict is an initializer of its own name.

The initializers point into a safetensors file beside the graph, in half precision with a Cast to the compute type
behind each; a template's say only whose they are. While the graph is cleaned up they are plain graph inputs, so that no
optimisation can fold, merge or transpose them. Knows nothing of families or of where files go.
"""

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnxscript import opset18 as op
from onnxscript import rewriter
from onnxscript.optimizer import fold_constants

from export import ExportError
from export.recipes import EngineRecipe
from export.weights import Stored
from server.engines.port import Array, Port

OPSET = 18
_COMPONENT = "component."  # how the wrappers of recipes name what they wrap
_LARGEST_CONSTANT = 1 << 16  # elements; a causal mask of 77x77 fits, a weight would not


def trace(recipe: EngineRecipe, module: torch.nn.Module, example: Mapping[str, Array]) -> ir.Model:
    """The graph of a wrapped module, cleaned up, its weights still graph inputs after the engine's own.

    `example` has the recipe's traced lengths. Raises `ExportError` when torch cannot follow the module.
    """
    inputs, outputs = recipe.spec.inputs, recipe.spec.outputs
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(torch.from_numpy(example[port.name]) for port in inputs),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=OPSET,
                input_names=[port.name for port in inputs],
                output_names=[port.name for port in outputs],
                dynamic_shapes=_dynamic_shapes(recipe),
                custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: _attention},
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"torch cannot trace {recipe.spec.name}: {error}") from error
    assert program is not None
    model: ir.Model = program.model
    state = module.state_dict()  # without buffers that are not stored, such as position ids
    _weights_to_inputs(model.graph, {name for name, tensor in state.items() if tensor.is_floating_point()})
    with _quiet():
        _clean(model)
    _name_axes(model.graph.inputs, inputs)
    _name_axes(model.graph.outputs, outputs)
    return model


def attach_weights(model: ir.Model, file: str, stored: Mapping[str, Stored]) -> bytes:
    """Point the weights of a traced model into `file`; gives the serialized ONNX model. Changes `model`."""
    graph = model.graph
    weights = [value for value in graph.inputs if "." in str(value.name)]  # no port of an engine has a dot in its name
    for weight in weights:
        graph.inputs.remove(weight)
        name = weight_name(str(weight.name))
        place = stored.get(name)
        if place is None or (place.dtype, place.shape) != ("F16", tuple(weight.shape or ())):
            raise ExportError(f"{file} holds no half precision {name} of shape {list(weight.shape or ())}")
        tensor = ir.ExternalTensor(
            file, place.offset, place.length, ir.DataType.FLOAT16, shape=ir.Shape(place.shape), name=name
        )
        half = ir.TensorType(ir.DataType.FLOAT16)
        initializer = ir.Value(name=name, type=half, shape=tensor.shape, const_value=tensor)
        graph.register_initializer(initializer)
        cast = ir.node("Cast", [initializer], {"to": ir.DataType.FLOAT}, name=f"{name}:cast")
        cast.outputs[0].name = f"{name}:float32"
        ir.convenience.replace_all_uses_with(weight, cast.outputs[0])
        graph.insert_before(graph[0], cast)
    model.producer_name, model.producer_version = "mediagen", None
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def weight_name(name: str) -> str:
    """An initializer's name, of a wrapped module's tensor: the component's own, or that after its owner in a template's
    ("unet/conv_in.weight")."""
    return name.removeprefix(_COMPONENT) if name.startswith(_COMPONENT) else name.replace(".", "/", 1)


def without_places(model: bytes) -> bytes:
    """A template: of each weight the owner's name stands where the file was. The places come with the variant."""
    proto = onnx.ModelProto.FromString(model)
    for tensor in proto.graph.initializer:
        if tensor.external_data:
            owner, _, _ = tensor.name.partition("/")
            length = next(entry.value for entry in tensor.external_data if entry.key == "length")
            del tensor.external_data[:]
            for key, value in (("location", owner), ("offset", "0"), ("length", length)):
                tensor.external_data.add(key=key, value=value)
    return proto.SerializeToString(deterministic=True)


def _dynamic_shapes(recipe: EngineRecipe) -> tuple[dict[int, Any], ...]:
    """For each input its free axes: torch's name for what the spec says."""
    units = {
        name: torch.export.Dim(name, min=1, max=axis.most // axis.multiple)
        for name, axis in recipe.axes.items()
        if not axis.unit
    }
    free: dict[str, Any] = {}
    for name, axis in recipe.axes.items():
        unit = units[axis.unit if axis.unit else name]
        free[name] = unit if axis.multiple == 1 else axis.multiple * unit
    return tuple(
        {index: free[length] for index, length in enumerate(port.shape) if isinstance(length, str)}
        for port in recipe.spec.inputs
    )


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Scaled dot-product attention of 4-axis tensors as the five plain nodes that runtimes fuse into one kernel."""
    assert (dropout_p, is_causal, enable_gqa) == (0.0, False, False), "no component of ours uses these"
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = op.MatMul(op.Mul(query, op.Constant(value_float=float(factor))), op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:  # true where a query sees a key
        assert attn_mask.dtype == ir.DataType.BOOL, "additive masks are not used by our components"
        scores = op.Where(attn_mask, scores, op.Constant(value_float=-math.inf))
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _weights_to_inputs(graph: ir.Graph, names: set[str]) -> None:
    for name in [name for name in graph.initializers if name in names]:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)


def _clean(model: ir.Model) -> None:
    """Fold constants, turn the exporter's sequences into Split (TensorRT knows no sequences), drop what is not used."""
    passes.InlinePass()(model)
    _fold(model)
    rewriter.rewrite(model)  # most of the time goes here, hence once
    _fold(model)
    ir.passes.Sequential(
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.IdentityEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
        passes.ClearMetadataAndDocStringPass(),
    )(model)
    for node in model.graph:  # a runtime infers these itself; they would be half of the file
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape, value.type = None, None


def _fold(model: ir.Model) -> None:
    folded = fold_constants(
        model, onnx_shape_inference=True, input_size_limit=_LARGEST_CONSTANT, output_size_limit=_LARGEST_CONSTANT
    )
    if folded.modified:
        passes.RemoveUnusedNodesPass()(model)


def _name_axes(values: Sequence[ir.Value], ports: Sequence[Port]) -> None:
    """Give graph inputs or outputs the spec's names and axes; the exporter writes expressions such as 8*height."""
    for value, port in zip(values, ports, strict=False):  # the weights follow the engine's own inputs
        value.name = port.name
        value.shape = ir.Shape(port.shape)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's notes about packages nobody needs off the screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
