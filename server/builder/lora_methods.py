"""What the factors of a LoRA come to: products of low rank (LoRA), of two such (LoHa), of Kronecker's kind (LoKr).

Shapes first, numbers later: what gives no tensor of the engine's shape is never multiplied. Knows no files and no names
of tensors.

Sources: peft (lora/layer.py), LyCORIS (functional/).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.builder.shapes import Shape, squeezed

Factors = Mapping[str, npt.NDArray[np.float32]]  # by what they are: "down", "up", ...

# The shape that factors give, if they do, and the ranks they have; alpha is divided by the last one.
Made = tuple[Shape | None, Sequence[int]]


@dataclass(frozen=True)
class Method:
    """One way to write a matrix small."""

    made: Callable[[Mapping[str, Shape], Shape], Made]  # from the factors' shapes, and the shape wanted
    product: Callable[[Factors], npt.NDArray[np.float32]]
    scale: Callable[[Mapping[str, str], float], float] = lambda factors, scale: scale


def _lora_made(factors: Mapping[str, Shape], wanted: Shape) -> Made:
    up, down, mid = squeezed(factors["up"]), factors["down"], factors.get("mid")
    rank = down[0] if down else 0
    if len(up) != 2 or len(down) not in (2, 4):
        return None, (rank,)
    if mid is None:
        return ((up[0], *down[1:]) if up[1] == rank else None), (max(rank, up[1]),)
    fits = len(mid) == 4 and mid[:2] == (up[1], rank) and len(squeezed(down)) == 2
    return ((up[0], down[1], *mid[2:]) if fits else None), (max(rank, up[1]),)


def _lora(factors: Factors) -> npt.NDArray[np.float32]:
    up, down, mid = _matrix(factors["up"]), factors["down"], factors.get("mid")
    if mid is None:
        return np.asarray((up @ _matrix(down)).reshape(len(up), *down.shape[1:]), np.float32)
    return _tucker(mid, up.T, _matrix(down))


def _loha_made(factors: Mapping[str, Shape], wanted: Shape) -> Made:
    halves, rank = [], 0
    for half in ("1", "2"):
        made, its_rank = _low_rank(factors[f"w{half}_a"], factors[f"w{half}_b"], factors.get(f"t{half}"), wanted)
        halves.append(made)
        rank = max(rank, its_rank)
    return (halves[0] if halves[0] == halves[1] else None), (rank,)


def _loha(factors: Factors) -> npt.NDArray[np.float32]:
    first, second = (
        factors[f"w{half}_a"] @ factors[f"w{half}_b"]
        if f"t{half}" not in factors
        else _tucker(factors[f"t{half}"], factors[f"w{half}_a"], factors[f"w{half}_b"])
        for half in ("1", "2")
    )
    return np.asarray(first * second, np.float32)


def _low_rank(a: Shape, b: Shape, core: Shape | None, wanted: Shape) -> tuple[Shape | None, int]:
    """Two matrices and their rank; b has a convolution's kernel flat beside channels. With a core, Tucker's form."""
    if len(a) != 2 or len(b) != 2:
        return None, 0
    if core is not None:
        fits = len(core) == 4 and core[:2] == (a[0], b[0])
        return ((a[1], b[1], *core[2:]) if fits else None), max(a[0], b[0])
    kernel = wanted[2:]
    fits = a[1] == b[0] and b[1] % math.prod(kernel) == 0
    return ((a[0], b[1] // math.prod(kernel), *kernel) if fits else None), b[0]


def _tucker(
    core: npt.NDArray[np.float32], a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """core: i j height width; a: i out; b: j in -> out in height width."""
    return np.asarray(np.einsum("ijkl,ip,jr->prkl", core, a, b, optimize=True), np.float32)


def _lokr_made(factors: Mapping[str, Shape], wanted: Shape) -> Made:
    first: Shape | None = factors.get("kron_w1")
    second: Shape | None = factors.get("kron_w2")
    ranks = [1]
    if first is None:
        first, rank = _low_rank(factors["kron_w1_a"], factors["kron_w1_b"], None, ())
        ranks.append(rank)
    if second is None:
        second, rank = _low_rank(factors["kron_w2_a"], factors["kron_w2_b"], factors.get("kron_t2"), wanted)
        ranks.append(rank)
    if first is None or second is None or len(first) != 2 or len(second) not in (2, 4):
        return None, ranks
    return (first[0] * second[0], first[1] * second[1], *second[2:]), ranks


def _lokr(factors: Factors) -> npt.NDArray[np.float32]:
    first = factors["kron_w1"] if "kron_w1" in factors else factors["kron_w1_a"] @ factors["kron_w1_b"]
    if "kron_w2" in factors:
        second = factors["kron_w2"]
    elif "kron_t2" in factors:
        second = _tucker(factors["kron_t2"], factors["kron_w2_a"], factors["kron_w2_b"])
    else:
        second = factors["kron_w2_a"] @ factors["kron_w2_b"]
    rows, columns = first.shape
    out, into = second.shape[0], second.shape[1:]
    # rows of the second within those of the first: (rows out, columns into...)
    made = first[:, None, :, None] * second.reshape(1, out, 1, -1)
    return np.asarray(made.reshape(rows * out, columns, *into), np.float32)


def _lokr_scale(factors: Mapping[str, str], scale: float) -> float:
    """Both whole: nothing has a rank, and LyCORIS then leaves alpha out."""
    return 1.0 if {"kron_w1", "kron_w2"} <= factors.keys() else scale


def _matrix(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return values.reshape(len(values), -1)


_LORA = Method(_lora_made, _lora)
_LOHA = Method(_loha_made, _loha)
_LOKR = Method(_lokr_made, _lokr, _lokr_scale)
_HADAMARD = frozenset({"w1_a", "w1_b", "w2_a", "w2_b"})
METHODS: Mapping[frozenset[str], Method] = {
    frozenset({"down", "up"}): _LORA,
    frozenset({"down", "mid", "up"}): _LORA,
    _HADAMARD: _LOHA,
    _HADAMARD | {"t1", "t2"}: _LOHA,
    **{
        frozenset({*first, *second}): _LOKR
        for first in (("kron_w1",), ("kron_w1_a", "kron_w1_b"))
        for second in (("kron_w2",), ("kron_w2_a", "kron_w2_b"), ("kron_w2_a", "kron_w2_b", "kron_t2"))
    },
}
