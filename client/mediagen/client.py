"""A small blocking client: a channel, and errors one can read. Requests and replies are the API's own messages."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self, cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from mediagen.v1 import asset_pb2, asset_pb2_grpc, engine_pb2, engine_pb2_grpc, image_pb2, image_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"
_MESSAGE_BYTES = 128 * 2**20  # sixteen large PNG files in one reply


class MediagenError(Exception):
    """A call failed. `violations` has (field, description) pairs where the request was refused."""

    def __init__(
        self, code: grpc.StatusCode, message: str, violations: Sequence[tuple[str, str]], retry_seconds: float | None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.violations = tuple(violations)
        self.retry_seconds = retry_seconds  # how long to wait before the same call, where waiting may help


class Client:
    """One connection to a service. Close it, or use it as a context manager."""

    def __init__(self, address: str = DEFAULT_ADDRESS, tenant: str | None = None) -> None:
        """`address` is host:port, `tenant` says whose assets are used. Nothing is sent before the first call."""
        limits = (
            ("grpc.max_receive_message_length", _MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MESSAGE_BYTES),
        )
        self._channel = grpc.insecure_channel(address, options=limits)
        self._images = image_pb2_grpc.ImageServiceStub(self._channel)
        self._engines = engine_pb2_grpc.EngineServiceStub(self._channel)
        self._assets = asset_pb2_grpc.AssetServiceStub(self._channel)
        self._metadata = () if tenant is None else (("x-mediagen-tenant", tenant),)

    def generate(self, request: image_pb2.GenerateRequest, timeout: float | None = None) -> image_pb2.GenerateResponse:
        """All pictures at once. `timeout` in seconds. Raises `MediagenError`."""
        try:
            reply: image_pb2.GenerateResponse = self._images.Generate(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _readable(error) from error
        return reply

    def stream(
        self, request: image_pb2.GenerateRequest, timeout: float | None = None
    ) -> Iterator[image_pb2.GenerateStreamResponse]:
        """Events as they happen; leaving the loop early cancels the call. Raises `MediagenError`."""
        call = self._images.GenerateStream(
            image_pb2.GenerateStreamRequest(request=request), timeout=timeout, metadata=self._metadata
        )
        try:
            yield from call
        except grpc.RpcError as error:
            raise _readable(error) from error
        finally:
            call.cancel()

    def explain(self, request: image_pb2.GenerateRequest, timeout: float | None = None) -> image_pb2.ExplainResponse:
        """What would run, and what is wrong with the request; nothing is drawn. Raises `MediagenError`."""
        try:
            reply: image_pb2.ExplainResponse = self._images.Explain(
                image_pb2.ExplainRequest(request=request), timeout=timeout, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise _readable(error) from error
        return reply

    def engines(self, timeout: float | None = None) -> Sequence[engine_pb2.Engine]:
        """The engines of the service, by name. Raises `MediagenError`."""
        try:
            reply: engine_pb2.ListEnginesResponse = self._engines.ListEngines(
                engine_pb2.ListEnginesRequest(), timeout=timeout, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise _readable(error) from error
        return reply.engines

    def assets(self, request: asset_pb2.ListAssetsRequest, timeout: float | None = None) -> Iterator[asset_pb2.Asset]:
        """All that may be used and passes the request's filters, newest first. Raises `MediagenError`."""
        page = asset_pb2.ListAssetsRequest()
        page.CopyFrom(request)
        while True:
            try:
                reply: asset_pb2.ListAssetsResponse = self._assets.ListAssets(
                    page, timeout=timeout, metadata=self._metadata
                )
            except grpc.RpcError as error:
                raise _readable(error) from error
            yield from reply.assets
            if not reply.next_page_token:
                return
            page.page_token = reply.next_page_token

    def asset(self, asset: str, timeout: float | None = None) -> asset_pb2.Asset:
        """By id or name. Raises `MediagenError`."""
        request = asset_pb2.GetAssetRequest(asset=asset)
        try:
            reply: asset_pb2.GetAssetResponse = self._assets.GetAsset(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _readable(error) from error
        return reply.asset

    def upload(
        self, description: asset_pb2.AssetDescription, pieces: Iterable[bytes], progress: Callable[[int], None]
    ) -> asset_pb2.Asset:
        """One stream, with the file's bytes from `description.offset` on in pieces of at most 2 MiB; `progress` is told
        where each ended, in another thread. Raises `MediagenError`, and what reading the pieces raises."""
        failed: list[BaseException] = []

        def parts() -> Iterator[asset_pb2.UploadAssetRequest]:
            yield asset_pb2.UploadAssetRequest(description=description)
            at = description.offset
            try:
                for piece in pieces:
                    yield asset_pb2.UploadAssetRequest(chunk=piece)
                    at += len(piece)
                    progress(at)
            except BaseException as error:  # in gRPC's thread, which would only break the stream
                failed.append(error)
                raise

        try:
            reply: asset_pb2.UploadAssetResponse = self._assets.UploadAsset(parts(), metadata=self._metadata)
        except grpc.RpcError as error:
            if failed and not isinstance(failed[0], GeneratorExit):
                raise failed[0] from error
            raise _readable(error) from error
        return reply.asset

    def delete_asset(self, asset: str, timeout: float | None = None) -> None:
        """By id or name. Raises `MediagenError`."""
        try:
            self._assets.DeleteAsset(
                asset_pb2.DeleteAssetRequest(asset=asset), timeout=timeout, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise _readable(error) from error

    def close(self) -> None:
        """Running calls end as cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _readable(error: grpc.RpcError) -> MediagenError:
    """The error with its google.rpc details unpacked."""
    violations: list[tuple[str, str]] = []
    retry_seconds = None
    status = rpc_status.from_call(cast(grpc.Call, error))  # what a stub raises is both
    for detail in status.details if status else ():
        bad_request, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(bad_request):
            violations += [(violation.field, violation.description) for violation in bad_request.field_violations]
        elif detail.Unpack(retry):
            retry_seconds = retry.retry_delay.ToTimedelta().total_seconds()
    return MediagenError(error.code(), error.details() or error.code().name, violations, retry_seconds)
