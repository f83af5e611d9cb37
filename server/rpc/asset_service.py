"""AssetService: messages to what the library keeps, and back. Who may do what, and what a file is, is the library's."""

import asyncio
from collections.abc import AsyncIterator

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from mediagen.v1 import asset_pb2 as pb
from mediagen.v1 import asset_pb2_grpc

from server.assets.asset import Asset, AssetType
from server.assets.library import MAX_PAGE, PAGE, Library
from server.assets.rules import Described, violations
from server.assets.store import Wanted
from server.assets.uploads import Uploads
from server.rpc.interceptor import Context, tenant
from server.violations import InvalidRequest, Violation, quoted

CHUNK_BYTES = 2 * 2**20
_TYPES = {pb.AssetType.Value(f"ASSET_TYPE_{type.name}"): type for type in AssetType}


class AssetService(asset_pb2_grpc.AssetServiceServicer):
    """All work on files and rows is done in threads."""

    def __init__(self, library: Library, uploads: Uploads) -> None:
        """Both are closed by who made them."""
        self._library = library
        self._uploads = uploads

    async def ListAssets(self, request: pb.ListAssetsRequest, context: Context) -> pb.ListAssetsResponse:
        types, size, below = _page(request)
        wanted = Wanted(types=types, family=request.family, name_prefix=request.name_prefix)
        rows = await asyncio.to_thread(self._library.page, tenant.get(), wanted, below, size + 1)
        more = len(rows) > size
        return pb.ListAssetsResponse(
            assets=[self._message(row.asset) for row in rows[:size]],
            next_page_token=str(rows[size - 1].number) if more else "",
        )

    async def GetAsset(self, request: pb.GetAssetRequest, context: Context) -> pb.GetAssetResponse:
        asset = await asyncio.to_thread(self._library.get, tenant.get(), request.asset)
        return pb.GetAssetResponse(asset=self._message(asset))

    async def UploadAsset(
        self, requests: AsyncIterator[pb.UploadAssetRequest], context: Context
    ) -> pb.UploadAssetResponse:
        parts = _readable(requests)
        first = await anext(parts, None)
        if first is None or first.WhichOneof("part") != "description":
            raise _invalid("description", "send it first, and the file's bytes in `chunk` after it")
        asset = await asyncio.to_thread(self._library.describe, tenant.get(), _described(first.description))
        upload = await self._uploads.receive(asset.id, first.description.offset, _chunks(parts))
        return pb.UploadAssetResponse(asset=self._message(await self._uploads.finish(upload)))

    async def DeleteAsset(self, request: pb.DeleteAssetRequest, context: Context) -> pb.DeleteAssetResponse:
        await asyncio.to_thread(self._library.delete, tenant.get(), request.asset)
        return pb.DeleteAssetResponse()

    def _message(self, asset: Asset) -> pb.Asset:
        created = Timestamp()
        created.FromDatetime(asset.create_time)
        return pb.Asset(
            id=asset.id,
            name=asset.name,
            type=f"ASSET_TYPE_{asset.type.name}",
            family=asset.facts.family,
            state=f"ASSET_STATE_{asset.state.name}",
            reason=asset.reason,
            size_bytes=asset.size_bytes,
            sha256=asset.sha256,
            public=asset.public,
            description=asset.description,
            create_time=created,
            engines=asset.facts.engines,
            preprocessor=asset.facts.preprocessor,
            received_bytes=self._library.received(asset),
            owned=asset.owner == tenant.get(),
        )


def _page(request: pb.ListAssetsRequest) -> tuple[list[AssetType], int, int | None]:
    """Types, size, and the number that the page is below. Raises `InvalidRequest`."""
    wrong = []
    if request.type and request.type not in _TYPES:
        wrong.append(_unknown_type(request.type))
    if not 0 <= request.page_size <= MAX_PAGE:
        wrong.append(Violation("page_size", f"{request.page_size} is not in 1..{MAX_PAGE}; 0 or nothing is {PAGE}"))
    token = request.page_token
    if token and not (token.isascii() and token.isdecimal() and len(token) < 19):
        wrong.append(Violation("page_token", f"{quoted(token)} is from no page; send `next_page_token` as it came"))
    if wrong:
        raise InvalidRequest(tuple(wrong))
    types = [_TYPES[request.type]] if request.type else []
    return types, request.page_size or PAGE, int(token) if token else None


def _described(description: pb.AssetDescription) -> Described:
    """Raises `InvalidRequest` with all that is wrong."""
    type = _TYPES.get(description.type)
    wrong = [] if type is not None else [_unknown_type(description.type)]
    wrong += violations(
        name=description.name,
        size_bytes=description.size_bytes,
        sha256=description.sha256,
        description=description.description,
        preprocessor=description.preprocessor,
        type=type,
    )
    if type is None or wrong:
        raise InvalidRequest(tuple(wrong))
    return Described(
        name=description.name,
        type=type,
        size_bytes=description.size_bytes,
        sha256=description.sha256.lower(),
        public=description.public,
        description=description.description,
        preprocessor=description.preprocessor,
    )


def _unknown_type(number: int) -> Violation:
    allowed = ", ".join(pb.AssetType.Name(known) for known in _TYPES)
    return Violation("type", f"{number} is none; allowed are {allowed}")


async def _readable(requests: AsyncIterator[pb.UploadAssetRequest]) -> AsyncIterator[pb.UploadAssetRequest]:
    """Raises `InvalidRequest` for bytes that are no message."""
    try:
        async for request in requests:
            yield request
    except DecodeError as error:
        raise _invalid("request", f"not readable ({error}); texts must be UTF-8") from error


async def _chunks(parts: AsyncIterator[pb.UploadAssetRequest]) -> AsyncIterator[bytes]:
    """Raises `InvalidRequest`."""
    async for part in parts:
        if part.WhichOneof("part") != "chunk":
            raise _invalid("chunk", "after the description there are only chunks")
        if len(part.chunk) > CHUNK_BYTES:
            raise _invalid("chunk", f"{len(part.chunk)} bytes; at most {CHUNK_BYTES} at a time")
        yield part.chunk


def _invalid(field: str, description: str) -> InvalidRequest:
    return InvalidRequest((Violation(field, description),))
