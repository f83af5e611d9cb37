"""The builder's gRPC service: one build a variant, however many ask; then room on the disk. Knows nothing of engines.

A build that nobody waits for any more is dropped before it begins; one that has begun ends, and lies on disk.

What is loaded is not removed: where the disk has no other room, the gateway is told what to unload, and asks again.
What happens to weights is `variant.py`'s, what is on disk `shelf.py`'s.
"""

import asyncio
import errno
import logging
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import grpc.aio
from mediagen.builder.v1 import builder_pb2 as pb
from mediagen.builder.v1 import builder_pb2_grpc

from server.adapters.weights import Kind
from server.assets.asset import blob
from server.builder.faults import BuilderFault, NoDisk, PartMissing, PartUnfit
from server.builder.shelf import Shelf
from server.builder.variant import BadPart, NoSpace, Source, TooLarge, build, is_of

_BUILDS = 2  # at the same time: a small variant need not wait for a large one

_KINDS: Mapping[int, Kind] = {
    pb.PART_KIND_CHECKPOINT: "checkpoint",
    pb.PART_KIND_VAE: "vae",
    pb.PART_KIND_LORA: "lora",
    pb.PART_KIND_CONTROLNET: "controlnet",
    pb.PART_KIND_IP_ADAPTER: "ip_adapter",
}
_CODES: Mapping[type[BuilderFault], grpc.StatusCode] = {
    PartMissing: grpc.StatusCode.NOT_FOUND,
    PartUnfit: grpc.StatusCode.INVALID_ARGUMENT,
    NoDisk: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")  # of a folder, never a path
_SHA256 = re.compile(r"[0-9a-f]{64}")

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Volumes:
    """The folders that the builder works on."""

    repository: Path  # the engines whose graphs and weights variants have
    assets: Path  # of the asset library
    variants: Path  # written here


@dataclass(eq=False)
class _Building:
    """One variant that somebody waits for."""

    task: "asyncio.Task[pb.EnsureVariantResponse]" = field(init=False)
    waiting: int = 0  # calls
    begun: bool = False  # in a thread: nothing stops it any more


class BuilderService(builder_pb2_grpc.BuilderServiceServicer):
    """Create it inside a running event loop; `close` it at the end."""

    def __init__(self, volumes: Volumes, budget: int) -> None:
        """`budget` is what all variants together may take on disk, in bytes. Nobody else may write into the folder."""
        self._volumes = volumes
        self._shelf = Shelf(volumes.variants, budget)
        self._shelf_lock = Lock()
        self._threads = ThreadPoolExecutor(_BUILDS, "build")
        self._turns = asyncio.Semaphore(_BUILDS)
        self._building: dict[str, _Building] = {}
        self._keep: frozenset[str] = frozenset()  # as told last
        self._idle: tuple[str, ...] = ()  # likewise

    async def EnsureVariant(self, request: pb.EnsureVariantRequest, context: Context) -> pb.EnsureVariantResponse:
        self._keep, self._idle = frozenset(request.keep), tuple(request.idle)
        building = self._building.get(request.name)
        if building is None:
            building = self._building[request.name] = _Building()
            building.task = asyncio.create_task(self._ensured(request, building))
            building.task.add_done_callback(lambda task: self._end(request.name, building))
        building.waiting += 1
        try:
            return await asyncio.shield(building.task)
        except BuilderFault as fault:
            await context.abort(_CODES[type(fault)], str(fault))
        except OSError as error:
            await context.abort(grpc.StatusCode.INTERNAL, f"variant {request.name} cannot be written: {error}")
        finally:
            building.waiting -= 1
            if not building.waiting and not building.begun:
                building.task.cancel()  # nothing where it has ended
                self._forget(request.name, building)  # at once: who asks now asks anew

    def close(self) -> None:
        """Builds that have not begun never do."""
        for building in self._building.values():
            if not building.begun:
                building.task.cancel()
        self._threads.shutdown(wait=False)

    def _end(self, name: str, building: _Building) -> None:
        self._forget(name, building)
        if not building.task.cancelled():
            building.task.exception()  # perhaps nobody waits any more who would look

    def _forget(self, name: str, building: _Building) -> None:
        if self._building.get(name) is building:
            del self._building[name]

    async def _ensured(self, request: pb.EnsureVariantRequest, building: _Building) -> pb.EnsureVariantResponse:
        found = await asyncio.to_thread(self._on_disk, request)
        if found is not None:
            return found
        async with self._turns:
            building.begun = True
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._built, request)

    def _on_disk(self, request: pb.EnsureVariantRequest) -> pb.EnsureVariantResponse | None:
        """None where the variant is to be built."""
        for name in (request.graph, request.name):
            if _NAME.fullmatch(name) is None:
                raise PartUnfit(f"{name!r} is no name of an engine or a variant")
        folder = self._volumes.variants / request.name
        with self._shelf_lock:
            self._shelf.are_used((*request.idle, *request.keep))
            if folder.is_dir() and not is_of(folder, self._volumes.repository):
                _log.info("variant %s is of an engine that was exported again since: it is built anew", request.name)
                self._shelf.remove(request.name)
            own = self._shelf.touch(request.name)
            if own is None:
                return None
            leave = self._shelf.make_room(request.name, self._needed(), self._idle)  # it may wait for what left
        return pb.EnsureVariantResponse(built=False, bytes=own, leave=leave)

    def _built(self, request: pb.EnsureVariantRequest) -> pb.EnsureVariantResponse:
        begin = time.perf_counter()
        in_the_way = self._build(request, [self._source(part) for part in request.parts])
        if in_the_way:
            return pb.EnsureVariantResponse(built=False, leave=in_the_way)
        with (
            self._shelf_lock
        ):  # who was needed when it began may idle by now: that is seen when the same is asked again
            perhaps = (*self._idle, *sorted(self._keep.difference(self._idle)))
            leave = self._shelf.make_room(request.name, tuple(self._building), perhaps)
            own = self._shelf.touch(request.name)
        seconds = time.perf_counter() - begin
        _log.info("variant %s of %d parts is built in %.2f s", request.name, len(request.parts), seconds)
        return pb.EnsureVariantResponse(built=True, milliseconds=seconds * 1e3, bytes=own or 0, leave=leave)

    def _build(self, request: pb.EnsureVariantRequest, sources: list[Source]) -> Sequence[str]:
        """What must leave a full disk before it can be built; none when it is. Raises `BuilderFault` or `OSError`."""
        while True:
            try:
                build(
                    *(self._volumes.variants / request.name, self._volumes.repository, request.graph, sources),
                    most=self._shelf.budget,
                )
                return ()
            except TooLarge as error:
                raise NoDisk(
                    f"variant {request.name} may take {error.size} bytes of disk, and variants may take "
                    f"{self._shelf.budget} together: set MEDIAGEN_VARIANT_DISK to more"
                ) from error
            except BadPart as error:
                raise PartUnfit(str(error)) from error
            except (NoSpace, OSError) as error:
                if isinstance(error, FileNotFoundError):  # deleted while it was read, or before
                    sources = [self._found(source) for source in sources]
                full = isinstance(error, NoSpace) or error.errno in (errno.ENOSPC, errno.EDQUOT)
                if not full:
                    raise
                with self._shelf_lock:
                    room = self._shelf.drop_oldest(self._needed().union(self._idle))
                    leave = self._shelf.those_here(self._idle, self._needed())[:1]
                if not room and leave:
                    return leave
                if not room:
                    raise NoDisk(f"there is no space on disk for variant {request.name}: {error}") from error

    def _needed(self) -> frozenset[str]:
        """Variants that must stay."""
        return self._keep.union(tuple(self._building))

    def _source(self, part: pb.Part) -> Source:
        if part.kind not in _KINDS or _SHA256.fullmatch(part.sha256) is None:
            raise PartUnfit(f"a part of kind {part.kind} with the hash {part.sha256!r} is none")
        return self._found(Source(_KINDS[part.kind], blob(self._volumes.assets, part.sha256), part.weight))

    @staticmethod
    def _found(source: Source) -> Source:
        if not source.path.is_file():
            raise PartMissing(
                f"the {source.kind} {source.path.stem[:16]} that was asked for is not there: it was deleted meanwhile"
            )
        return source
