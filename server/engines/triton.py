"""Engines behind Triton's gRPC endpoint, whichever Triton it is: the embedded one, a container, a pod.

Protobuf messages are built here directly, as fast as by tritonclient's own asyncio client (0.9 ms a call with a tiny
engine) and without its second set of types. Knows nothing of how Triton was started.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from server.engines.port import (
    Array,
    EngineFault,
    EngineInputError,
    EngineOverloaded,
    EngineTimeout,
    EngineUnavailable,
    Spec,
    Tensors,
    Usage,
)

_DATATYPES: Mapping[str, str] = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}
_MESSAGE_BYTES = 256 << 20  # a 1536x1024 picture in uint8 has 4.5 MiB, sixteen SDXL latents 4 MiB
_LOAD_SECONDS = 600.0  # the first load of a large engine from a cold disk
_UNLOAD_SECONDS = 30.0  # the call returns at once, executions under way or not
_LEAVE_SECONDS = 3.0  # the engine's process ends 1.0 to 1.3 s later; one that hangs is not waited for
_LOOK_SECONDS = 0.02  # between looks whether it has ended
_READY_SECONDS = 5.0  # it takes a millisecond; a Triton that is only busy answers, one that hangs does not

# Triton tells these apart from each other only by text, so the text decides; first match.
_FAULTS: tuple[tuple[grpc.StatusCode, str, type[EngineFault]], ...] = (
    (grpc.StatusCode.DEADLINE_EXCEEDED, "", EngineTimeout),
    (grpc.StatusCode.UNAVAILABLE, "maximum queue size", EngineOverloaded),
    (grpc.StatusCode.UNAVAILABLE, "timeout expired", EngineTimeout),
    (grpc.StatusCode.UNAVAILABLE, "", EngineUnavailable),
    (grpc.StatusCode.NOT_FOUND, "", EngineUnavailable),
    (grpc.StatusCode.INTERNAL, "is not healthy", EngineUnavailable),
    (grpc.StatusCode.INVALID_ARGUMENT, "", EngineInputError),
)


class TritonEngines:
    """`Engines` over one gRPC channel. Create it inside a running event loop."""

    def __init__(self, address: str, specs: Iterable[Spec], message_bytes: int = _MESSAGE_BYTES) -> None:
        """`address` is host:port; `message_bytes` is the largest request or reply."""
        self._address = address
        self._message_bytes = message_bytes
        self._specs = {spec.name: spec for spec in specs}
        self._channel = grpc.aio.insecure_channel(
            address,
            options=(
                ("grpc.max_send_message_length", message_bytes),
                ("grpc.max_receive_message_length", message_bytes),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 500),
            ),
        )
        self._triton = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def add(self, spec: Spec, repository: Path) -> None:
        """See `Engines`. `repository` must be one of Triton's, which looks into its folders at each load."""
        self._specs.setdefault(spec.name, spec)

    def forget(self, engine: str) -> None:
        """See `Engines`."""
        self._specs.pop(engine, None)

    async def load(self, engine: str) -> None:
        """See `Engines`."""
        self._spec(engine)
        await self._control(
            engine,
            self._triton.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=engine), timeout=_LOAD_SECONDS),
        )

    async def unload(self, engine: str) -> None:
        """See `Engines`."""
        self._spec(engine)
        await self._control(
            engine,
            self._triton.RepositoryModelUnload(
                pb.RepositoryModelUnloadRequest(model_name=engine), timeout=_UNLOAD_SECONDS
            ),
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                while engine in await self._in_state("UNLOADING", pb.RepositoryIndexRequest()):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_SECONDS)  # Triton tells nobody

    async def run(self, engine: str, inputs: Tensors, timeout: float | None = None) -> dict[str, Array]:
        """See `Engines`. A cancelled task cancels its call; Triton then drops it unless it is being executed."""
        spec = self._spec(engine)
        spec.check(inputs)
        try:
            reply = await self._triton.ModelInfer(_request(spec, inputs), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise self._fault(engine, error) from error
        return _outputs(spec, reply)

    async def ready(self) -> Sequence[str]:
        """See `Engines`. Empty when Triton does not answer. A dead or hanging engine process shows in calls only."""
        names = await self._in_state("READY", pb.RepositoryIndexRequest(ready=True))
        return tuple(name for name in self._specs if name in names)

    async def answers(self) -> bool:
        """See `Engines`. By ServerLive: Triton's own readiness ends with the first engine that cannot be loaded."""
        try:
            reply = await self._triton.ServerLive(pb.ServerLiveRequest(), timeout=_READY_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        return bool(reply.live)

    async def usage(self) -> Mapping[str, Usage]:
        """See `Engines`. Triton's own statistics: of every client since the engine was loaded."""
        try:
            reply = await self._triton.ModelStatistics(pb.ModelStatisticsRequest(), timeout=_READY_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise self._fault("statistics", error) from error
        return {
            model.name: Usage(model.execution_count, model.inference_stats.compute_infer.ns / 1e9)
            for model in reply.model_stats
            if model.name in self._specs
        }

    async def close(self) -> None:
        """See `Engines`."""
        await self._channel.close()

    def _spec(self, engine: str) -> Spec:
        spec = self._specs.get(engine)
        if spec is None:
            raise EngineInputError(f"there is no engine {engine!r}, only {', '.join(sorted(self._specs)) or 'none'}")
        return spec

    async def _in_state(self, state: str, request: pb.RepositoryIndexRequest) -> frozenset[str]:
        """Names of models, in Triton's own words; none when it does not answer."""
        try:
            index = await self._triton.RepositoryIndex(request, timeout=_READY_SECONDS)
        except grpc.aio.AioRpcError:
            return frozenset()
        return frozenset(model.name for model in index.models if model.state == state)

    async def _control(self, engine: str, call: grpc.aio.UnaryUnaryCall[Any, Any]) -> None:
        """Whatever is wrong with an engine in a repository, from here it is an engine that is not there."""
        try:
            await call
        except grpc.aio.AioRpcError as error:
            raise EngineUnavailable(f"{engine}: {_text(error)} ({self._address})") from error

    def _fault(self, engine: str, error: grpc.aio.AioRpcError) -> EngineFault:
        text = _text(error)
        if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
            return EngineFault(f"{engine}: a message above the limit of {self._message_bytes} bytes: {text}")
        for code, fragment, fault in _FAULTS:
            if error.code() == code and fragment in text:
                return fault(f"{engine}: {text} ({self._address})")
        return EngineFault(f"{engine}: {text}")


def _request(spec: Spec, inputs: Tensors) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        model_name=spec.name,
        inputs=[
            pb.ModelInferRequest.InferInputTensor(
                name=port.name, datatype=_DATATYPES[port.dtype], shape=_sent_shape(inputs[port.name].shape)
            )
            for port in spec.inputs
        ],
        raw_input_contents=[inputs[port.name].tobytes() for port in spec.inputs],
    )


def _sent_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A `config.pbtxt` cannot declare a tensor of rows alone: it says `dims: [1] reshape: { shape: [] }` instead."""
    return shape if len(shape) > 1 else (*shape, 1)


def _outputs(spec: Spec, reply: pb.ModelInferResponse) -> dict[str, Array]:
    """The tensors of a reply, writable. Raises `EngineFault` when they are not those of the spec."""
    found = {
        tensor.name: (tensor.datatype, tuple(tensor.shape), raw)
        for tensor, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }
    results: dict[str, Array] = {}
    for port in spec.outputs:
        datatype, shape, raw = found.get(port.name, ("nothing", (), b""))
        dtype = np.dtype(port.dtype)
        if datatype != _DATATYPES[port.dtype] or len(raw) != int(np.prod(shape)) * dtype.itemsize:
            raise EngineFault(f"{spec.name}: output {port.name} came as {datatype}{list(shape)} in {len(raw)} bytes")
        if len(port.shape) == 1 and shape[1:] == (1,):  # see `_sent_shape`
            shape = shape[:1]
        results[port.name] = np.frombuffer(bytearray(raw), dtype).reshape(shape)
    return results


def _text(error: grpc.aio.AioRpcError) -> str:
    return " ".join((error.details() or error.code().name).split())
