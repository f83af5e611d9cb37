"""What an engine takes of the machine's memory while it is loaded, told from its files before it is loaded.

Knows the runtime's habits, by measurement, and nothing of who decides what is loaded.
"""

import json
import math
from pathlib import Path

from server.initializers import initializers

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
    named = _named(folder / "model.onnx")
    if named is None:
        weights = (path for path in folder.glob("*.safetensors") if path.name != "golden.safetensors")
        return BYTES_AN_ENGINE + BYTES_A_PARAMETER * sum(map(_parameters, weights))
    return BYTES_AN_ENGINE + BYTES_A_PARAMETER * named


def _parameters(path: Path) -> int:
    """How many numbers a safetensors file has, by its header."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError):
        return 0


_STORED_BYTES = 2  # of a number: every engine's weights are stored in half precision beside the graph
_WITHIN_BYTES = 4  # within it they are what they are computed in
_SMALL_BYTES = 4096  # names, shapes, constants


def _named(model: Path) -> int | None:
    """How many numbers of the files beside it a graph names: an autoencoder's two engines have the same file and name
    a half each, a variant's graph names the tensors that replace others instead of those. What is large within the
    graph counts, too: somebody's own network may have all of its weights there. None: it cannot be read."""
    try:
        tensors = initializers(model)
        beside = sum(int(tensor.beside.get("length", 0)) for tensor in tensors)
        within = sum(tensor.stored for tensor in tensors if tensor.stored > _SMALL_BYTES)
        return beside // _STORED_BYTES + within // _WITHIN_BYTES
    except (OSError, ValueError):
        return None


def gibibytes(memory: int) -> str:
    """For people."""
    return f"{memory / 2**30:.2f} GiB"
