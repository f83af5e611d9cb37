"""What an engine takes of the machine's memory while it is loaded, told from its files before it is loaded.

Knows the runtime's habits, by measurement, and nothing of who decides what is loaded.
"""

import json
import math
from collections.abc import Container, Iterator
from pathlib import Path

# Measured on engines of 2 to 200 MiB of fp16 weights in the embedded Triton (proportional set size of an engine's
# process): OpenVINO holds float32 weights twice, as read and as packed for its kernels. 105 million parameters took 876
# MiB as matrix products, 103 million as much in convolutions, 25 million 268 MiB. Of an engine that comes from its
# cache, one of the two is a mapped file, which the kernel may drop in need and read again.
BYTES_A_PARAMETER = 8
# The process and its libraries (60 to 95 MiB), the compiled graph, and room for a guidance pair at 512x512: the engines
# of the default Stable Diffusion 1.5 took 107 (text), 216 (UNet) and 146 MiB (decoder); 8, 45 and 7 are parameters.
BYTES_AN_ENGINE = 192 * 2**20
# Not counted is what larger calls need on top, and keep: of the same engines 300 MiB for 16 rows at 512x512, 0.4 GiB to
# decode 1536x1024. A full-size decoder has maps of 256 channels at 1024x1024, 1 GiB each.


def estimate(repository: Path, engine: str) -> int:
    """Bytes. An engine whose weights cannot be read counts as one without any: loading it says what is wrong."""
    folder = repository / engine / "1"
    weights = (path for path in folder.glob("*.safetensors") if path.name != "golden.safetensors")
    named = _initializers(folder / "model.onnx")
    return BYTES_AN_ENGINE + BYTES_A_PARAMETER * sum(_parameters(path, named) for path in weights)


def _parameters(path: Path, named: Container[str] | None) -> int:
    """How many numbers of a safetensors file are loaded, by its header: an autoencoder's encoder and decoder have the
    same file, and each graph names its own half. None: all."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        tensors = {name: math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        return sum(count for name, count in tensors.items() if named is None or name in named)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError):
        return 0


# Of onnx.proto3, which changes no number; onnx itself is too large to be had for this.
_GRAPH, _INITIALIZER, _NAME = 7, 5, 8


def _initializers(model: Path) -> frozenset[str] | None:
    """The tensors that a graph names; None when it cannot be read."""
    try:
        (graph,) = _fields(memoryview(model.read_bytes()), _GRAPH)
        return frozenset(
            str(name, "utf-8") for tensor in _fields(graph, _INITIALIZER) for name in _fields(tensor, _NAME)
        )
    except (OSError, ValueError, IndexError):
        return None


def _fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The fields of one number in a protobuf message, which have a length. Raises `ValueError` or `IndexError`."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        match key & 7:  # the wire type
            case 0:
                _, position = _varint(message, position)
            case 1:
                position += 8
            case 2:
                length, position = _varint(message, position)
                if position + length > len(message):
                    raise ValueError("a field ends beyond its message")
                if key >> 3 == wanted:
                    yield message[position : position + length]
                position += length
            case 5:
                position += 4
            case other:
                raise ValueError(f"wire type {other}")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number, and where it ends."""
    number = shift = 0
    while True:
        byte = message[position]
        number, shift, position = number | (byte & 0x7F) << shift, shift + 7, position + 1
        if byte < 0x80:
            return number, position


def gibibytes(memory: int) -> str:
    """For people."""
    return f"{memory / 2**30:.2f} GiB"
