"""Reads safetensors files that strangers made. Anything the format forbids is refused before a tensor is looked at.

Sizes are bounded first, so a hostile header costs a bounded amount of memory. Bytes are read, never mapped: a file that
shrinks under a mapping kills the process. Knows nothing of what the tensors are for.

Source: https://github.com/huggingface/safetensors (Format).
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MOST_HEADER_BYTES = 16 << 20  # an SDXL checkpoint has 0.4 MiB; trainers add some MiB about their pictures
MOST_TENSORS = 20_000  # an SDXL LyCORIS of every layer has about 7,000
MOST_AXES = 8
MOST_NAME = 256  # characters
_METADATA = "__metadata__"
_PIECE = 4 << 20  # bytes, a multiple of every number's
_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
READABLE = ("F16", "BF16", "F32", "F64")


class BadFile(Exception):
    """Not a file that this reads; the text says what was found and what is allowed."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a file."""

    dtype: str  # "F16", "F32", ...
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    length: int  # bytes


class Tensors:
    """An open file whose header was found good. Threads may share it."""

    def __init__(self, path: Path) -> None:
        """Raises `BadFile`, or `OSError` when there is no such file."""
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.stored, self.metadata = _header(self._file)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "Tensors":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def float32(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor's values. Raises `BadFile` when it is not of floating point, or not finite in float32."""
        entry = self.stored[name]
        return _decoded(self._read(name, 0, entry.length), entry.dtype, name).reshape(entry.shape)

    def pieces(self, name: str) -> Iterator[npt.NDArray[np.float32]]:
        """The same, flat and some MiB at a time: of a tensor that may be larger than memory."""
        entry = self.stored[name]
        for begin in range(0, entry.length, _PIECE):
            yield _decoded(self._read(name, begin, min(_PIECE, entry.length - begin)), entry.dtype, name)

    def float16(self, name: str) -> npt.NDArray[np.float16]:
        """A tensor's values, rounded to half precision where it is another. Raises `BadFile` when it is too small."""
        if self.stored[name].dtype != "F16":
            return to_half(self.float32(name), name)
        values = np.frombuffer(self._read(name, 0, self.stored[name].length), "<f2")
        if not np.isfinite(values).all():
            raise BadFile(f"{told(name)} holds NaN or infinity; weights are finite numbers")
        return values.reshape(self.stored[name].shape)

    def _read(self, name: str, begin: int, length: int) -> bytes:
        """Bytes of a tensor as they lie in the file."""
        offset, parts = self.stored[name].offset + begin, []
        while length > 0:  # one read gives 2 GiB at most
            part = os.pread(self._file, length, offset)
            if not part:
                raise BadFile(f"the file became shorter while {told(name)} was read")
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _decoded(raw: bytes, dtype: str, name: str) -> npt.NDArray[np.float32]:
    match dtype:
        case "F16":
            values = np.frombuffer(raw, "<f2").astype(np.float32)
        case "BF16":
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        case "F32":
            values = np.frombuffer(raw, "<f4")
        case "F64":
            with np.errstate(over="ignore", invalid="ignore"):
                values = np.frombuffer(raw, "<f8").astype(np.float32)
        case other:
            raise BadFile(f"{told(name)} is {other}; weights are {', '.join(READABLE)}")
    if not np.isfinite(values).all():
        raise BadFile(f"{told(name)} holds NaN or infinity; weights are finite numbers")
    return values


def to_half(values: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float16]:
    """Rounded to nearest, ties to even. Raises `BadFile` when half precision is too small."""
    with np.errstate(over="ignore"):
        halved = values.astype(np.float16)
    if not np.isfinite(halved).all():
        largest = float(np.abs(values).max())
        raise BadFile(f"{told(name)} comes to {largest:.3g}; weights are kept in half precision, up to 65504")
    return halved


def told(name: str) -> str:
    """A tensor's name for people."""
    return name if len(name) <= 100 else f"{name[:60]}...{name[-37:]}"


def some(names: Sequence[str]) -> str:
    """A few of many names."""
    return ", ".join(told(name) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _header(file: int) -> tuple[Mapping[str, Stored], Mapping[str, str]]:
    size = os.fstat(file).st_size
    start = os.pread(file, 8, 0)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length < 2 or length > size - 8:
        _no(f"it begins with a header of {length} bytes and has {size} in all: cut short, or not a safetensors file")
    if length > MOST_HEADER_BYTES:
        _no(f"its header has {length} bytes; at most {MOST_HEADER_BYTES} are read")
    text = os.pread(file, length, 8)
    entries = _json(text)
    metadata = entries.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _no(f"its {_METADATA} is not an object of texts")
    if not entries:
        _no("it holds no tensors")
    if len(entries) > MOST_TENSORS:
        _no(f"it holds {len(entries)} tensors; at most {MOST_TENSORS} are read")
    stored = {name: _entry(name, entry, 8 + length) for name, entry in entries.items()}
    end = 8 + length
    for name, tensor in sorted(stored.items(), key=lambda item: item[1].offset):
        if tensor.offset != end:
            wrong = "overlaps the one before it" if tensor.offset < end else "leaves a hole before it"
            _no(f"{told(name)} {wrong}; tensors lie end to end")
        end += tensor.length
    if end != size:
        wrong = "cut short" if end > size else "with something behind the last tensor"
        _no(f"its tensors end at byte {end} and it has {size}: {wrong}")
    return stored, metadata


def _json(text: bytes) -> dict[str, Any]:
    if text.count(b"[") > 4 * MOST_TENSORS:  # a tensor has two: what they are built into is bounded before it is built
        _no(f"its header has lists for more than {MOST_TENSORS} tensors")
    objects = 0

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal objects
        objects += 1
        if objects > MOST_TENSORS + 2:
            _no(f"its header describes more than {MOST_TENSORS} tensors")
        if len(pairs) > MOST_TENSORS + 1:  # the metadata
            _no(f"its header has an object of {len(pairs)} entries; at most {MOST_TENSORS} are read")
        made: dict[str, Any] = {}
        for name, value in pairs:
            if name in made:
                _no(f"its header has {told(ascii(name))} twice")
            made[name] = value
        return made

    try:
        found = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"its header is not JSON ({type(error).__name__}): not a safetensors file") from error
    if not isinstance(found, dict):
        _no("its header is not a JSON object")
    return found


def _entry(name: str, entry: Any, start: int) -> Stored:
    if not 0 < len(name) <= MOST_NAME or not name.isprintable():
        _no(f"a tensor is called {told(ascii(name))}; names are up to {MOST_NAME} printable characters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _no(f"{told(name)} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        _no(f"{told(name)} has the dtype {told(ascii(dtype))}; the format has {', '.join(_BYTES)}")
    if not _naturals(shape) or len(shape) > MOST_AXES or not _naturals(offsets) or len(offsets) != 2:
        _no(f"{told(name)} needs a shape of up to {MOST_AXES} whole numbers and two offsets, none negative")
    begin, end = offsets
    length = math.prod(shape) * _BYTES[dtype]
    if length != end - begin or length == 0:
        _no(f"{told(name)} has the shape {told(str(shape))} of {dtype}, {length} bytes, and lies on {end - begin}")
    return Stored(dtype, tuple(shape), start + begin, length)


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _no(reason: str) -> NoReturn:
    raise BadFile(reason)
