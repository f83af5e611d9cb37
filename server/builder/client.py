"""The gateway's side of the builder: a process of its own, started and watched, or one that runs elsewhere.

Knows how a variant is asked for and what may go wrong then; not what a variant is for.
"""

import asyncio
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mediagen.builder.v1 import builder_pb2 as pb
from mediagen.builder.v1 import builder_pb2_grpc

from server.adapters.weights import Variant
from server.builder.faults import BuilderAway, BuilderFault, BuildFailed, NoDisk, PartMissing, PartUnfit

_START_SECONDS = 10.0  # it takes 0.5 s; the rest is for a cold disk, and for a restart under way
_BUILD_SECONDS = 1800.0  # the largest checkpoint from a slow disk
_PAUSES = (0.0, 0.5, 2.0, 10.0, 30.0)  # seconds before the nth restart in a row
_STEADY_SECONDS = 60.0  # after living this long, a death counts as the first again
_LOOK_SECONDS = 5.0  # between looks whether it answers
_ANSWER_SECONDS = 10.0  # it takes a millisecond, builds under way or not
_MISSED_LOOKS = 3  # in a row are no slow machine: it hangs and is killed
_SOCKET_PATH_BYTES = 100  # the kernel takes 107

_FAULTS: Mapping[grpc.StatusCode, type[BuilderFault]] = {
    grpc.StatusCode.NOT_FOUND: PartMissing,
    grpc.StatusCode.INVALID_ARGUMENT: PartUnfit,
    grpc.StatusCode.RESOURCE_EXHAUSTED: NoDisk,
    grpc.StatusCode.UNAVAILABLE: BuilderAway,
    grpc.StatusCode.DEADLINE_EXCEEDED: BuilderAway,
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Built:
    """A variant's folder is there; or it will be, once others have left."""

    built: bool  # for this wish; otherwise it was on disk
    seconds: float  # that building it took
    leave: tuple[str, ...] = ()  # variants to unload, if they are idle now, before the same is asked again


class Builder:
    """Asks one builder. Create it inside a running event loop; `close` it at the end."""

    def __init__(self, address: str) -> None:
        """`address` is host:port or unix:/path."""
        self._address = address
        options = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 500))
        self._channel = grpc.aio.insecure_channel(address, options=options)
        self._stub = builder_pb2_grpc.BuilderServiceStub(self._channel)

    async def ensure(self, variant: Variant, keep: Collection[str], idle: Sequence[str] = ()) -> Built:
        """Returns when the variant's folder is there. Those named in `keep` stay; those in `idle`, least recently used
        first, stay until they are unloaded, which the answer may ask for. Who is cancelled gives the wish up: the
        builder drops it unless it has begun or others have it too. Raises `BuilderFault`.
        """
        request = pb.EnsureVariantRequest(
            graph=variant.graph.name,
            name=variant.spec.name,
            parts=[
                pb.Part(kind=f"PART_KIND_{part.kind.upper()}", sha256=part.sha256, weight=part.weight)
                for part in variant.parts
            ],
            keep=keep,
            idle=idle,
        )
        try:
            async with asyncio.timeout(_START_SECONDS):  # `wait_for` would now and then ignore who gives up
                await self._channel.channel_ready()
            reply = await self._stub.EnsureVariant(request, timeout=_BUILD_SECONDS)
        except TimeoutError as error:
            raise BuilderAway(f"no builder answers at {self._address}") from error
        except grpc.aio.AioRpcError as error:
            fault = _FAULTS.get(error.code(), BuildFailed)
            text = error.details() or error.code().name
            raise fault(f"the builder ended or hangs: {text}" if fault is BuilderAway else text) from error
        return Built(reply.built, reply.milliseconds / 1e3, tuple(reply.leave))

    async def close(self) -> None:
        """Let go of the connection."""
        await self._channel.close()


@dataclass(frozen=True)
class Command:
    """What a builder of our own is told."""

    repository: Path
    assets: Path
    variants: Path
    disk: int  # bytes

    def arguments(self, address: str) -> list[str]:
        """Of `python`."""
        return [
            *("-m", "server.builder", "--listen", address, "--until-stdin-ends"),
            *("--repository", str(self.repository.resolve()), "--assets", str(self.assets.resolve())),
            *("--variants", str(self.variants.resolve()), "--disk", str(self.disk)),
        ]


class EmbeddedBuilder:
    """One builder process, started again whenever it ends. It ends when this process does, however that ends."""

    def __init__(self, command: Command, cache: Path) -> None:
        """Prepare; nothing runs yet. Its socket will lie in `cache`, or where its path would be too long, elsewhere."""
        self._command = command
        name = f"builder-{os.getpid()}-{token_hex(3)}.socket"
        short = len(os.fsencode(cache.resolve() / name)) <= _SOCKET_PATH_BYTES
        self._socket = (cache.resolve() if short else Path(tempfile.gettempdir())) / name
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """The same after a restart."""
        return f"unix:{self._socket}"

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    async def __aenter__(self) -> Self:
        """Begin to start it; who asks it waits until it answers."""
        self._socket.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead_sockets(self._socket.parent)
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        self._socket.unlink(missing_ok=True)

    async def _watch(self) -> None:
        """For ever: start it and wait for its end."""
        loop, attempt = asyncio.get_running_loop(), 0
        while True:
            await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
            started = loop.time()
            try:
                code = await self._lived()
                _log.error("the builder ended with code %s", code)
            except OSError as error:
                _log.error("the builder cannot be started: %s", error)
            attempt = 1 if loop.time() - started > _STEADY_SECONDS else attempt + 1

    async def _lived(self) -> int:
        """The exit status of one process, from its start to its end; one that hangs is killed."""
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, *self._command.arguments(self.address)),
            env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the gateway, which lets its requests end
        )
        ends = asyncio.create_task(process.wait())
        hangs = asyncio.create_task(_hangs(self.address))
        try:
            await asyncio.wait((ends, hangs), return_when=asyncio.FIRST_COMPLETED)
            if not ends.done():
                _log.error("the builder did not answer %d times in a row and is killed", _MISSED_LOOKS)
                process.kill()
            return await ends
        finally:
            ends.cancel()
            hangs.cancel()
            self._process = None
            if process.returncode is None:
                process.kill()
                await process.wait()


def _remove_dead_sockets(folder: Path) -> None:
    """Those that killed gateways left: nobody listens there."""
    for path in folder.glob("builder-*.socket"):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:  # another user's, or gone meanwhile
                continue


async def _hangs(address: str) -> None:
    """Returns when the builder at `address` has not answered several times in a row."""
    missed = 0
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its methods have no types
        while missed < _MISSED_LOOKS:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=_ANSWER_SECONDS)
                missed = 0
            except grpc.aio.AioRpcError:
                missed += 1
