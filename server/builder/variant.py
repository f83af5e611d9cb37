"""Writes a variant: an engine's graph in a model folder of its own, over other weights.

Always from the repository's engine and the parts' files, never from another variant, so a wish gives the same bytes
whenever it is made. What did not change is the engine's own file, by a hard link. A folder is there as a whole or not
at all. Knows nothing of requests, budgets and Triton.
"""

import errno
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import onnx
from safetensors.numpy import load_file, save_file

from server.adapters.weights import COMPONENTS, Kind
from server.builder.adapter import expect_controlnet, expect_ip_adapter
from server.builder.lora import read_lora
from server.builder.merge import Addition, Half, Job, Place, merge, write
from server.builder.reading import BadFile, Tensors
from server.builder.shapes import TEMPLATES, WEIGHTS, EngineShapes, Misfit, Shape, engine_shapes, plain
from server.builder.single_file import Piece, find

MOST_PARTS = 32
# Of what this package makes of the same files: the next number makes all variants anew that are on disk.
FORMAT = 1
CHANGED = "changed.safetensors"
ADAPTER = "adapter.safetensors"
_GOLDEN = "golden.safetensors"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP})


class BadPart(Exception):
    """A part cannot be put over this engine; the text says which and why."""


class NoSpace(Exception):
    """The disk is full; nothing was left on it."""


class TooLarge(Exception):
    """More bytes than it may have."""

    def __init__(self, size: int) -> None:
        super().__init__(f"{size} bytes")
        self.size = size


@dataclass(frozen=True)
class Source:
    """One part's file."""

    kind: Kind
    path: Path
    weight: float = 1.0  # of a LoRA


@dataclass(frozen=True)
class _Template:
    """An engine of the repository, taken apart."""

    folder: Path
    card: str
    component: str  # whose weights merge; "" in a graph without any
    base: Path  # those weights


@dataclass(frozen=True)
class _Part:
    source: Source
    tensors: Tensors


def build(folder: Path, repository: Path, graph: str, parts: Sequence[Source], most: int = sys.maxsize) -> int:
    """Make `folder`, which must not exist: an engine's model under other weights. Returns the bytes it takes beside
    the engine's own file.

    Raises `BadPart`, `NoSpace`, or `OSError`; `TooLarge`, before anything is merged, where it would take more than
    `most` bytes if all tensors that the parts name changed. Then nothing is there.
    """
    if len(parts) > MOST_PARTS:
        raise BadPart(f"{len(parts)} parts for one network; at most {MOST_PARTS} are merged")
    template = _template(repository, graph)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _building(folder) as building, ExitStack() as opened:
            files = [_Part(part, opened.enter_context(_opened(part))) for part in parts]
            size = _fill(building, folder.name, repository, template, files, most)
            _store(building)
            building.rename(folder)
            _flush(folder.parent)
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpace(f"no space left for {folder.name}: {error.strerror}; delete variants or assets") from error
        raise
    return size


def is_of(folder: Path, repository: Path) -> bool:
    """Was a variant made from its engine as the repository has it now? An engine may be exported again."""
    try:
        about = json.loads(folder.joinpath("variant.json").read_text())
        return bool(about["base"] == _fingerprint(_template(repository, about["graph"])))
    except (OSError, ValueError, KeyError, TypeError, BadPart):
        return False


def _fingerprint(template: _Template) -> str:
    digest = sha256(f"{FORMAT} ".encode())
    digest.update((template.folder / "1" / "model.onnx").read_bytes())
    if template.component:
        status = template.base.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _template(repository: Path, graph: str) -> _Template:
    for suffix, component in {**TEMPLATES, **COMPONENTS}.items():
        card = graph.removesuffix(f"_{suffix}")
        if card == graph or not repository.joinpath(f"{card}.json").is_file():
            continue
        folder = repository / graph
        if suffix not in TEMPLATES:
            return _Template(folder, card, component, folder / "1" / WEIGHTS)
        merges = "unet" if suffix.startswith("unet_") else ""
        return _Template(folder, card, merges, repository / f"{card}_unet" / "1" / WEIGHTS)
    raise BadPart(f"{graph} is no engine that has variants, of any card in the repository")


@contextmanager
def _building(folder: Path) -> Iterator[Path]:
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        building.chmod(0o755)
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _store(folder: Path) -> None:
    """Returns when it survives that the machine loses its power: half a file would look like a whole one then."""
    for path in (*folder.rglob("*"), folder):
        if path.name != WEIGHTS:  # the engine's own
            _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _opened(part: Source) -> Iterator[Tensors]:
    with _told(part):
        tensors = Tensors(part.path)
    with tensors:
        yield tensors


@contextmanager
def _told(part: Source) -> Iterator[None]:
    """A fault of a part's file names the part."""
    try:
        yield
    except (BadFile, Misfit) as error:
        raise BadPart(f"{part.kind} {part.path.stem[:16]}: {error}") from error


def _fill(building: Path, name: str, repository: Path, template: _Template, parts: Sequence[_Part], most: int) -> int:
    version = building / "1"
    version.mkdir()
    family = json.loads(repository.joinpath(f"{template.card}.json").read_text())["family"]
    shapes = engine_shapes(repository, template.card, family)
    model = onnx.load(str(template.folder / "1" / "model.onnx"), load_external_data=False)
    external = {
        tensor.name: tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    merging = {plain(_bare(tensor)): tensor for tensor in external if _merges(tensor)}
    places: dict[str, Place] = {}
    changed: Mapping[str, Place] = {}
    if template.component:
        jobs, base, stored = _jobs(template, shapes, merging, parts)
        with base:
            _expect(sum(math.prod(job.shape) for job in jobs), most)
            try:
                changed = merge(jobs, base, version / CHANGED)
            except BadFile as error:
                raise BadPart(f"{', '.join(_title(part) for part in parts)}: {error}") from error
            places |= {merging[plain(tensor)]: place for tensor, place in changed.items()}
        kept = {tensor: stored[own] for own, tensor in merging.items() if tensor not in places}
        if kept:
            _link_base(template.base, version / WEIGHTS, building.parent / "base")
            places |= kept
    owned = {_bare(tensor): tensor for tensor in external if not _merges(tensor)}
    _expect(sum(math.prod(tensor.dims) for name, tensor in external.items() if not _merges(name)), most)
    places |= {owned[tensor]: place for tensor, place in _adapter(version / ADAPTER, shapes, owned, parts).items()}
    _point(external, places)
    version.joinpath("model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    _golden(template.folder / "1" / _GOLDEN, version / _GOLDEN, changed=bool(changed))
    text = template.folder.joinpath("config.pbtxt").read_text()
    building.joinpath("config.pbtxt").write_text(re.sub(r'(?m)^name: ".*"$', f'name: "{name}"', text, count=1))
    size = sum(path.stat().st_size for path in building.rglob("*") if path.is_file() and path.name != WEIGHTS)
    about = {
        "graph": template.folder.name,
        "parts": [
            {"kind": part.source.kind, "file": part.source.path.stem, "weight": part.source.weight} for part in parts
        ],
        "base": _fingerprint(template),
        "bytes": size,
    }
    building.joinpath("variant.json").write_text(json.dumps(about, indent=2) + "\n")
    return size


def _expect(values: int, most: int) -> None:
    size = 2 * values  # in half precision
    if size > most:
        raise TooLarge(size)


def _title(part: _Part) -> str:
    return f"{part.source.kind} {part.source.path.stem[:16]} at {part.source.weight:g}"


def _merges(tensor: str) -> bool:
    """Is it of the network's own weights, and not an adapter's?"""
    return "/" not in tensor or tensor.startswith("unet/")


def _bare(tensor: str) -> str:
    return tensor.partition("/")[2] or tensor


def _jobs(
    template: _Template, shapes: EngineShapes, merging: Mapping[str, str], parts: Sequence[_Part]
) -> tuple[list[Job], Tensors, Mapping[str, Place]]:
    """What is to be done to the network's own weights, that file, and where each of its tensors lies."""
    pieces: dict[str, tuple[Tensors, Piece]] = {}
    additions: dict[str, list[Addition]] = {}
    for part in parts:
        with _told(part.source):
            match part.source.kind:
                case "checkpoint" | "vae":
                    wanted = ["vae"] if part.source.kind == "vae" else list(dict.fromkeys(COMPONENTS.values()))
                    found = find(part.tensors, shapes, wanted).get(template.component, {})
                    pieces |= {name: (part.tensors, piece) for name, piece in found.items()}
                case "lora":
                    for change in read_lora(part.tensors, shapes):
                        if change.component == template.component:
                            addition = Addition(part.tensors, change, part.source.weight)
                            additions.setdefault(change.name, []).append(addition)
    base = Tensors(template.base)
    stored = {
        plain(name): Place(WEIGHTS, entry.offset, entry.length)
        for name, entry in base.stored.items()
        if entry.dtype == "F16"
    }
    jobs = [
        Job(name, base.stored[name].shape, pieces.get(plain(name)), tuple(additions.get(plain(name), ())))
        for name in base.stored
        if plain(name) in merging and (plain(name) in pieces or plain(name) in additions)
    ]
    return jobs, base, stored


def _adapter(path: Path, shapes: EngineShapes, owned: Mapping[str, str], parts: Sequence[_Part]) -> Mapping[str, Place]:
    """The tensors of a template that are not the network's own, out of the one part that brings them."""
    bringing = [part for part in parts if part.source.kind in ("controlnet", "ip_adapter")]
    if not owned and not bringing:
        return {}
    if len(bringing) != 1 or not owned:
        raise BadPart(f"{len(bringing)} ControlNets and IP-Adapters for a graph that takes {1 if owned else 'none'}")
    (part,) = bringing
    with _told(part.source):
        expect = expect_controlnet if part.source.kind == "controlnet" else expect_ip_adapter
        expect(part.tensors, shapes)
        if not owned.keys() <= part.tensors.stored.keys():
            raise Misfit("the graph takes another kind of adapter")
        sizes: dict[str, Shape] = {name: part.tensors.stored[name].shape for name in owned}
        halves: Iterator[tuple[str, Half]] = ((name, part.tensors.float16(name)) for name in owned)
        return write(path, sizes, halves)


def _link_base(weights: Path, place: Path, shared: Path) -> None:
    """The engine's own file under another name; on another disk, one copy for all variants."""
    try:
        os.link(weights, place)
        return
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
    status = weights.stat()
    known = sha256(f"{weights} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
    copy = shared / f"{known}.safetensors"
    if not copy.exists():
        shared.mkdir(exist_ok=True)
        handle, making = tempfile.mkstemp(prefix=".copying-", dir=shared)
        os.close(handle)
        try:
            shutil.copyfile(weights, making)
            _flush(Path(making))
            os.chmod(making, 0o644)
            os.replace(making, copy)
        finally:
            Path(making).unlink(missing_ok=True)
    os.link(copy, place)


def _point(external: Mapping[str, onnx.TensorProto], places: Mapping[str, Place]) -> None:
    """Write into the graph where each tensor lies now."""
    for name, tensor in external.items():
        place = places[name]
        del tensor.external_data[:]
        for key, value in (("location", place.file), ("offset", place.offset), ("length", place.length)):
            tensor.external_data.add(key=key, value=str(value))


def _golden(given: Path, made: Path, *, changed: bool) -> None:
    """Known answers hold while the network's own weights do; else only what to ask is known."""
    tensors = load_file(given)
    save_file({name: tensor for name, tensor in tensors.items() if name.startswith("input.") or not changed}, made)
    made.chmod(0o644)
