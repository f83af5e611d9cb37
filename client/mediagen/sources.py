"""What is uploaded: a safetensors file as it is, or a diffusers folder packed into one stream of the same format.

Nothing is ever whole in memory, and a stream may be read from any byte on.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "vae")  # folders of a checkpoint whose weights are packed
PIECE_BYTES = 2**20
_MAX_HEADER = 100 * 2**20  # bytes; the format's own bound


class NoSource(OSError):
    """The path holds nothing that can be uploaded; says why."""


@dataclass(frozen=True)
class _Part:
    """Bytes in memory, or of a file."""

    size: int
    content: bytes  # of the stream's own
    path: Path  # where there is no content
    begin: int


@dataclass(frozen=True)
class Source:
    """A stream of known length."""

    name: str  # of the file or folder, without its end
    packed: bool  # from a folder
    parts: Sequence[_Part]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.size for part in self.parts)

    def read(self, offset: int) -> Iterator[bytes]:
        """From this byte to the end, in pieces. Raises `OSError`."""
        for part in self.parts:
            skip = min(offset, part.size)
            offset -= skip
            yield from _read(part, skip)

    def sha256(self, progress: Callable[[int], None]) -> str:
        """Of all of it; `progress` is told how many bytes more were read."""
        digest = hashlib.sha256()
        for piece in self.read(0):
            digest.update(piece)
            progress(len(piece))
        return digest.hexdigest()


def source(path: Path) -> Source:
    """Raises `NoSource`, `OSError`."""
    if not path.is_dir():
        return Source(path.stem, False, [_Part(path.stat().st_size, b"", path, 0)])
    name = path.resolve().name
    files = [(f"{part}.", file) for part in COMPONENTS for file in _weights(path / part)]
    if not files:
        alone = _weights(path)  # one component's own folder
        if len(alone) == 1:
            return Source(name, False, [_Part(alone[0].stat().st_size, b"", alone[0], 0)])
        raise NoSource(
            f"{path} is no diffusers folder with safetensors weights: it has none in {', '.join(COMPONENTS)}; "
            "save it with `save_pretrained(..., safe_serialization=True)`"
        )
    return Source(name, True, _packed(files))


def _weights(folder: Path) -> Sequence[Path]:
    """The files of a component: without those of other precisions, where both are there."""
    found = sorted(folder.glob("*.safetensors"))
    plain = [file for file in found if ".fp16" not in file.name and ".non_ema" not in file.name]
    return plain or found


def _packed(files: Sequence[tuple[str, Path]]) -> Sequence[_Part]:
    """One header over all, then each file's data as it is."""
    header: dict[str, object] = {}
    parts, at = [], 0
    for prefix, file in files:
        tensors, begin, size = _header(file)
        for name, tensor in tensors.items():
            first, last = tensor["data_offsets"]
            if (
                header.setdefault(f"{prefix}{name}", moved := {**tensor, "data_offsets": [at + first, at + last]})
                is not moved
            ):
                raise NoSource(f"{file} has the tensor {name}, and so has another file of {file.parent}")
        parts.append(_Part(size, b"", file, begin))
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of 8
    content = struct.pack("<Q", len(text)) + text
    return [_Part(len(content), content, Path(), 0), *parts]


def _header(file: Path) -> tuple[dict[str, dict[str, list[int]]], int, int]:
    """Tensors, where their data begins, and its bytes. Raises `NoSource` for what is no such file."""
    whole = file.stat().st_size
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8).ljust(8, b"\0"))
        if not 0 < length <= min(_MAX_HEADER, whole - 8):
            raise NoSource(f"{file} is no safetensors file, or not all of one")
        try:
            tensors = json.loads(opened.read(length))
            tensors.pop("__metadata__", None)
            end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise NoSource(f"{file} is no safetensors file: its header cannot be read") from error
    begin = 8 + length
    if end != whole - begin:
        raise NoSource(f"{file} has {whole - begin} bytes of data and its header tells of {end}: fetch it again")
    return tensors, begin, whole - begin


def _read(part: _Part, skip: int) -> Iterator[bytes]:
    if part.content:
        for at in range(skip, part.size, PIECE_BYTES):
            yield part.content[at : at + PIECE_BYTES]
        return
    with part.path.open("rb") as file:
        file.seek(part.begin + skip)
        left = part.size - skip
        while left > 0:
            piece = file.read(min(PIECE_BYTES, left))
            if not piece:
                raise NoSource(f"{part.path} became shorter while it was read")
            left -= len(piece)
            yield piece
