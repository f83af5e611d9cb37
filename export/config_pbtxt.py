"""Triton's `config.pbtxt` for an engine, from its spec. Knows nothing of the graph."""

from collections.abc import Mapping

from server.engines.port import Port, Spec

_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8"}


def render(spec: Spec, backend: str, parameters: Mapping[str, str]) -> str:
    """Protobuf text of `inference.ModelConfig`. The rows axis is Triton's batch axis and left out of dims."""
    blocks = [
        f'name: "{spec.name}"',
        f'backend: "{backend}"',
        f"max_batch_size: {spec.max_rows}",
        'default_model_filename: "model.onnx"',
        *(_tensor("input", port) for port in spec.inputs),
        *(_tensor("output", port) for port in spec.outputs),
        "instance_group [ { count: 1, kind: KIND_CPU } ]",
        *(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in parameters.items()),
    ]
    return "\n".join(blocks) + "\n"


def _tensor(kind: str, port: Port) -> str:
    dims = [-1 if isinstance(length, str) else length for length in port.shape[1:]]
    # Triton wants at least one axis beside the batch: a request sends rows x 1 and the engine is given rows.
    shape = f"dims: {dims}" if dims else "dims: [1], reshape { shape: [] }"
    return f'{kind} [ {{ name: "{port.name}", data_type: {_TYPES[port.dtype]}, {shape} }} ]'
