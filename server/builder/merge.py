"""Pristine weights, a checkpoint over them, LoRAs over that: which tensors come out different, one at a time.

An SDXL's UNet has 5 GB: no more than a few tensors are held. Knows no engines' files and no graphs.
"""

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from server.builder.lora import Change
from server.builder.reading import Tensors, to_half
from server.builder.shapes import Shape
from server.builder.single_file import Piece

Half = npt.NDArray[np.float16]

# numpy lets go of the interpreter while it multiplies and rounds. The largest tensor of an SDXL takes 0.2 GB here.
_THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Addition:
    """What one LoRA adds to one tensor."""

    tensors: Tensors
    change: Change
    weight: float  # what the request gives; any sign


@dataclass(frozen=True)
class Job:
    """One tensor of an engine and what is put over it."""

    name: str  # the engine's file's
    shape: Shape  # the engine's
    checkpoint: tuple[Tensors, Piece] | None  # stands in its place
    additions: tuple[Addition, ...]


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file."""

    file: str
    offset: int  # bytes from the start
    length: int  # bytes


def merged(job: Job, base: Tensors) -> Half | None:
    """The tensor as it is to be; None when that is what it was. Raises `BadFile` when a value is no number in half
    precision. Deltas are summed in float32 and rounded once."""
    pristine = base.float16(job.name)
    if job.additions:
        total = _start(job, pristine)
        with np.errstate(over="ignore", invalid="ignore"):  # told when it is rounded
            for addition in job.additions:
                total = total + addition.change.delta(addition.tensors, addition.weight)
        made = to_half(total, job.name)
    elif job.checkpoint is not None:
        tensors, piece = job.checkpoint
        made = piece.of(tensors.float16(piece.tensor)).reshape(job.shape)
    else:
        return None
    made = np.ascontiguousarray(made)
    same = np.array_equal(made.reshape(-1).view(np.uint16), pristine.reshape(-1).view(np.uint16))
    return None if same else made


def _start(job: Job, pristine: Half) -> npt.NDArray[np.float32]:
    if job.checkpoint is None:
        return pristine.astype(np.float32)
    tensors, piece = job.checkpoint
    return piece.of(tensors.float32(piece.tensor)).reshape(job.shape)


def merge(jobs: Sequence[Job], base: Tensors, path: Path) -> Mapping[str, Place]:
    """Write what comes out different to a file, if anything does, and say where it lies, by name."""
    results = ahead(lambda job: merged(job, base), jobs)
    changed = ((job.name, made) for job, made in zip(jobs, results, strict=True) if made is not None)
    return write(path, {job.name: job.shape for job in jobs}, changed)


def write(path: Path, shapes: Mapping[str, Shape], arrays: Iterable[tuple[str, Half]]) -> Mapping[str, Place]:
    """A safetensors file of some of these tensors, each gone before the next is asked for. None: no file.

    Room for the header of all of them is left first; what is not needed of it is spaces, as the format allows.
    """
    most = sum(2 * math.prod(shape) for shape in shapes.values())
    room = len(_header({name: (shape, most) for name, shape in shapes.items()})) + 8
    places: dict[str, Place] = {}
    with path.open("wb") as file:
        start = end = 8 + room - room % 8
        file.seek(start)
        for name, array in arrays:
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            file.write(raw)  # type: ignore[arg-type]  # an array has the buffer protocol
            places[name] = Place(path.name, end, raw.nbytes)
            end += raw.nbytes
        header = _header({name: (shapes[name], place.offset - start) for name, place in places.items()})
        file.seek(0)
        file.write((start - 8).to_bytes(8, "little") + header.ljust(start - 8))
    if not places:
        path.unlink()
    return places


def _header(entries: Mapping[str, tuple[Shape, int]]) -> bytes:
    return json.dumps(
        {
            name: {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, begin + 2 * math.prod(shape)]}
            for name, (shape, begin) in entries.items()
        }
    ).encode()


def ahead(work: Callable[[Job], Half | None], jobs: Iterable[Job]) -> Iterator[Half | None]:
    """Results in order, while a thread or two are ahead with the next."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="merge") as pool:
        waiting: deque[Future[Half | None]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) > _THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
