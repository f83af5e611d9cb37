"""The embedded Triton: the real `tritonserver` of the PyPI wheel, started, watched, started again, cleaned up after.

Knows nothing of engines: after a restart none is loaded, and whoever wants them loads them again. That binary has none
of the security fixes since October 2024: it listens on loopback only, without HTTP and metrics.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from server.engines import launcher, leftovers, wheel
from server.engines.wheel import Host, TritonStartError

_START_SECONDS = 30.0  # it takes 0.2 s; the rest is for a cold disk
_STOP_SECONDS = 1.0  # for executions under way; Triton would take seconds more to unload engines, which nobody needs
_PAUSES = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds before the nth restart in a row
_STEADY_SECONDS = 60.0  # after living this long, a death counts as the first again
_LOOK_SECONDS = 2.0  # between looks whether it answers
_ANSWER_SECONDS = 5.0  # it takes a millisecond, executions under way or not
_MISSED_LOOKS = 3  # in a row are no slow machine: it hangs and is killed
_QUOTED_BYTES = 20_000
_HOST = "127.0.0.1"

_log = logging.getLogger(__name__)


class EmbeddedTriton:
    """One Triton process and its stubs, from `start` to `stop`.

    `cache` is a folder for its run files and compiled engines. Triton dies with the thread that starts it.
    """

    def __init__(
        self,
        repository: Path,
        cache: Path,
        port: int | None = None,
        host: Host | None = None,
        variants: Path | None = None,
    ) -> None:
        """Prepare; nothing runs yet. `port` None takes a free one, `host` None is this machine. `variants` is a folder
        of further engines, which may come and go while Triton runs; None: there are none.
        """
        self._repositories = [folder.resolve() for folder in (repository, variants) if folder is not None]
        self._cache = cache.resolve()
        self._wanted_port = port
        self._host = Host.here() if host is None else host
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def log_file(self) -> Path:
        """Where Triton's own output goes, once started; it stays until a later process starts a Triton."""
        return self._run_folder / "triton.log"

    async def start(self) -> str:
        """Start, and return the address once Triton answers. Raises `TritonStartError`."""
        try:
            self._port = _free_port() if self._wanted_port is None else self._wanted_port
            await asyncio.to_thread(self._prepare)
            self._process = await self._launch()
        except OSError as error:
            raise TritonStartError(
                f"the embedded Triton needs {error.filename or self._cache} and cannot use it ({error.strerror}): "
                "make it accessible, or set MEDIAGEN_CACHE to a folder that can be written"
            ) from error
        self._watcher = asyncio.create_task(self._watch(self._process))
        return self.address

    @property
    def address(self) -> str:
        """Host and port; the same after a restart."""
        return f"{_HOST}:{self._port}"

    async def stop(self) -> None:
        """End Triton and everything it started. May be called at any time, also twice."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
            except TimeoutError:
                _log.info("Triton did not end within %.0f s of SIGTERM and is killed", _STOP_SECONDS)
        if self._process is not None:
            await self._kill(self._process)
            self._process = None

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()

    @property
    def _run_folder(self) -> Path:
        return self._cache / self._mark

    def _prepare(self) -> None:
        for repository in self._repositories:
            if not repository.is_dir():
                raise TritonStartError(f"the model repository {repository} is not a folder")
        self._installation = wheel.find(self._host)
        self._mark = leftovers.new_mark()  # not before it is sure that this is Linux
        self._cache.mkdir(parents=True, exist_ok=True)
        leftovers.sweep(self._cache)
        wheel.lay_out_backends(self._installation, self._run_folder / "backends")

    async def _launch(self) -> asyncio.subprocess.Process:
        """Start the process and wait until it answers."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, self._port))
            except OSError as error:
                raise TritonStartError(
                    f"port {self._port} on {_HOST} cannot be used for Triton ({error.strerror}): "
                    "end the program that holds it or choose another port"
                ) from error
        with self.log_file.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", launcher.__file__, str(os.getpid())),
                *self._command(),
                env=self._environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        answers = asyncio.create_task(_answers(self.address))
        ends = asyncio.create_task(process.wait())
        try:
            await asyncio.wait((answers, ends), return_when=asyncio.FIRST_COMPLETED)
            if ends.done():
                raise TritonStartError(
                    f"Triton ended at its start with code {ends.result()}; {await self._last_words()}"
                )
            if answers.exception() is not None:
                raise TritonStartError(
                    f"Triton did not answer within {_START_SECONDS:.0f} s; {await self._last_words()}"
                )
        except BaseException:
            await self._kill(process)
            raise
        finally:
            answers.cancel()
            ends.cancel()
        return process

    def _command(self) -> list[str]:
        return [
            str(self._installation.binary),
            *(f"--model-repository={repository}" for repository in self._repositories),
            f"--backend-directory={self._run_folder / 'backends'}",
            "--model-control-mode=explicit",
            "--disable-auto-complete-config",
            f"--grpc-address={_HOST}",
            f"--grpc-port={self._port}",
            "--allow-http=false",
            "--allow-metrics=false",
            f"--exit-timeout-secs={_STOP_SECONDS:.0f}",
            # python-based backends take the python backend's settings
            f"--backend-config=python,shm-region-prefix-name={self._mark}",
        ]

    def _environment(self) -> dict[str, str]:
        """Nothing of the gateway's own environment: what the stub imports must not depend on the caller's shell."""
        return {
            "PATH": os.defpath,
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, self._installation.libraries)),
            "MEDIAGEN_PYTHON_PATH": os.pathsep.join(map(str, self._installation.python_path)),
            "MEDIAGEN_CACHE": str(self._cache / "openvino"),
        }

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """For ever: wait for Triton's end, clean up, start it again."""
        attempt = 0
        while True:
            started = time.monotonic()
            code = await self._end(process)
            _log.error("Triton ended with code %s; %s", code, await self._last_words())
            attempt = 0 if time.monotonic() - started > _STEADY_SECONDS else attempt
            process, attempt = await self._restart(attempt)
            _log.warning("Triton serves again on %s", self.address)

    async def _end(self, process: asyncio.subprocess.Process) -> int:
        """The exit status, once it has one; a process that hangs gets one."""
        ends = asyncio.create_task(process.wait())
        hangs = asyncio.create_task(_hangs(self.address))
        try:
            await asyncio.wait((ends, hangs), return_when=asyncio.FIRST_COMPLETED)
            if not ends.done():
                _log.error("Triton did not answer %d times in a row and is killed", _MISSED_LOOKS)
                process.kill()
            return await ends
        finally:
            ends.cancel()
            hangs.cancel()

    async def _restart(self, attempt: int) -> tuple[asyncio.subprocess.Process, int]:
        """Try until it succeeds; returns the process and how many restarts in a row there have been."""
        while True:
            await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
            attempt += 1
            try:
                await asyncio.to_thread(leftovers.remove, self._mark)
                self._process = await self._launch()
            except Exception as error:  # whatever it was, the only way to serve again is to try again
                _log.error("Triton's restart number %d failed: %s", attempt, error)
                continue
            return self._process, attempt

    async def _kill(self, process: asyncio.subprocess.Process) -> None:
        """The process and its stubs, in whatever state they are."""
        await asyncio.to_thread(leftovers.remove, self._mark)
        await process.wait()

    async def _last_words(self) -> str:
        return await asyncio.to_thread(_quote, self.log_file)


def _quote(log: Path) -> str:
    """The last errors at the end of the log, or its last lines."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _QUOTED_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"its log {log} cannot be read: {error.strerror}"
    errors = [line for line in lines if line.startswith(("E", "error", "terminate"))]
    return f"its log {log} ends: {' | '.join((errors or lines)[-3:])}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


async def _answers(address: str) -> None:
    """Returns when Triton at `address` says that it is live."""
    options = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100))
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        await stub.ServerLive(service_pb2.ServerLiveRequest(), wait_for_ready=True, timeout=_START_SECONDS)


async def _hangs(address: str) -> None:
    """Returns when Triton at `address` has not answered several times in a row."""
    missed = 0
    async with grpc.aio.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        while missed < _MISSED_LOOKS:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=_ANSWER_SECONDS)
                missed = 0
            except grpc.aio.AioRpcError:
                missed += 1
