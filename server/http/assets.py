"""The asset library's JSON routes: the old API's paths over the same library that AssetService has."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.types import Receive

from server.assets.asset import Asset, AssetState, AssetType
from server.assets.faults import BadUpload, NoSuchAsset, NotOwner, Rejected
from server.assets.library import COMING, Library
from server.assets.rules import Described, violations
from server.assets.uploads import Uploads
from server.http import asset_models as models
from server.http.asset_query import PARAMETERS, asked_of
from server.http.body import Left, NotJson, Room, parse, read, refuse_what_is_not_json
from server.http.document import failures
from server.http.facade import READ_SECONDS, answered, response
from server.http.replies import Answer, Refused, Wrong, of_json, of_message, of_places, of_wrongs, wrongs_of
from server.http.translate import wrong_of
from server.rpc.interceptor import tenant
from server.violations import quoted

PATH = "/v1/assets"
_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})", re.ASCII)
_ONLY_NULL = ("url", "hf_repo", "hf_token_secret")

Model = TypeVar("Model", bound=BaseModel)


class AssetRoutes:
    """What the routes share. Both are closed by who made them."""

    def __init__(self, library: Library, uploads: Uploads) -> None:
        self._library = library
        self._uploads = uploads
        self._room = Room()

    def add(self, app: FastAPI) -> None:
        """To the application and its document."""
        add = partial(app.add_api_route, tags=["assets"])
        one = f"{PATH}/{{asset}}"
        body = partial(_documented, models.CreateAsset)
        add(
            PATH,
            self.list,
            methods=["GET"],
            summary="What there is",
            response_model=models.Assets,
            responses=failures(),
            openapi_extra={"parameters": PARAMETERS},
        )
        add(
            PATH,
            self.create,
            methods=["POST"],
            summary="Describe an asset",
            status_code=201,
            response_model=models.OneAsset,
            responses=failures(409, 507),
            openapi_extra=body(),
        )
        add(
            one,
            self.get,
            methods=["GET"],
            summary="One asset, by id or name",
            response_model=models.OneAsset,
            responses=failures(404),
        )
        add(
            one,
            self.delete,
            methods=["DELETE"],
            summary="Remove an asset",
            response_model=models.Deleted,
            responses=failures(403, 404),
        )
        add(
            f"{one}/content",
            self.put,
            methods=["PUT"],
            summary="Send its bytes",
            response_model=models.OneAsset,
            responses=failures(400, 404, 408, 409, 411, 416, 429, 507),
            openapi_extra=_BYTES,
        )
        add(
            f"{one}/complete-upload",
            self.complete,
            methods=["POST"],
            summary="Say that all bytes were sent",
            response_model=models.Completed,
            responses=failures(403, 404, 409, 429, 507),
            openapi_extra=_documented(models.CompleteUpload, required=False),
        )

    @answered
    async def list(self, request: Request) -> Response:
        asked, wrong = asked_of(request)
        if wrong:
            return response(of_places("query", wrong))
        wanted, below, size, skip = asked
        rows = await asyncio.to_thread(self._library.page, tenant.get(), wanted, below, size + 1, skip)
        total = await asyncio.to_thread(self._library.count, tenant.get(), wanted)
        more = len(rows) > size
        page = {
            "data": [self._told(row.asset) for row in rows[:size]],
            "has_more": more,
            "total": total,
            "next_page_token": str(rows[size - 1].number) if more else "",
        }
        return response(of_json(200, page))

    @answered
    async def create(self, request: Request) -> Response:
        model = await self._body(request, models.CreateAsset)
        asset = await asyncio.to_thread(self._library.describe, tenant.get(), _described(model))
        return response(self._one(request, asset, 201))

    @answered
    async def get(self, request: Request, asset: str) -> Response:
        found = await asyncio.to_thread(self._library.get, tenant.get(), asset)
        return response(self._one(request, found, 200))

    @answered
    async def delete(self, asset: str) -> Response:
        gone = await asyncio.to_thread(self._library.delete, tenant.get(), asset)
        deleted = {"id": gone.id, "status": gone.state.value, "deleted_at": datetime.now(UTC).isoformat()}
        return response(of_json(200, deleted))

    @answered
    async def put(self, request: Request, asset: str) -> Response:
        """Who knows the id of what is no asset yet is whom its owner told."""
        offset, size = await _place(request, self._library, asset)
        upload = await self._uploads.receive(asset, offset, _chunks(request.receive), size)
        upload.close()
        row = await asyncio.to_thread(self._library.store.by_id, asset)
        if row is None:  # deleted in this moment
            raise NoSuchAsset(asset)
        return response(self._one(request, row.asset, 200))

    @answered
    async def complete(self, request: Request, asset: str) -> Response:
        await self._body(request, models.CompleteUpload)
        found = await asyncio.to_thread(self._library.get, tenant.get(), asset)
        if found.owner != tenant.get():
            raise NotOwner(f"{found.name} is not yours: only its owner may complete its upload")
        if found.state in COMING:
            try:
                found = await self._uploads.complete(found.id)
            except (BadUpload, Rejected):
                found = await asyncio.to_thread(self._library.get, tenant.get(), found.id)
        error = None if found.state is AssetState.READY else found.reason
        return response(of_json(200, {"error": error, "asset": self._told(found)}))

    def _told(self, asset: Asset) -> dict[str, Any]:
        return models.told(asset, self._library.received(asset), tenant.get())

    def _one(self, request: Request, asset: Asset, status: int) -> Answer:
        url = f"{str(request.base_url).rstrip('/')}{PATH}/{asset.id}/content" if asset.state in COMING else None
        transfer = {"type": "none"} if url is None else {"type": "presigned-url", "put_url": url, "get_url": ""}
        return of_json(status, {"asset": self._told(asset), "transfer_api": transfer, "upload_url": url})

    async def _body(self, request: Request, model: type[Model]) -> Model:
        """Raises `Refused` with all that is wrong; an absent body is an empty one where that may be."""
        if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
            values: object = {}
        else:
            refuse_what_is_not_json(request.headers)
            async with read(request.receive, self._room, READ_SECONDS) as body:
                values = parse(body)
        if not isinstance(values, dict):
            raise NotJson(
                Wrong((), 'not a JSON object, such as {"name": "crayon", "asset_type": "lora"}', "object_type")
            )
        try:
            made = model.model_validate(values)
        except ValidationError as error:
            raise Refused(of_wrongs([wrong_of(one) for one in error.errors(include_url=False)])) from None
        if getattr(made, "skip_validation", None):
            raise Refused(
                of_wrongs([Wrong(("skip_validation",), "every file is looked at; leave it out", "value_error")])
            )
        return made


def _described(model: models.CreateAsset) -> Described:
    """Raises `Refused`."""
    type = AssetType(model.asset_type)
    said = model.description or "", model.preprocessor or ""
    wrong = wrongs_of(violations(model.name, model.size_bytes, model.sha256, *said, type))
    nothing = "nothing is fetched from elsewhere; send the bytes to `upload_url`"
    wrong += [Wrong((key,), nothing, "value_error") for key in _ONLY_NULL if getattr(model, key) is not None]
    if wrong:
        raise Refused(of_wrongs(wrong))
    sha256 = None if model.sha256 is None else model.sha256.lower()
    return Described(model.name, type, model.size_bytes, sha256, model.is_public or False, *said)


async def _place(request: Request, library: Library, id: str) -> tuple[int, int | None]:
    """Where the bytes of this request begin, and how many the whole file has. Raises `Refused`."""
    length, given = request.headers.get("content-length", ""), request.headers.get("content-range")
    count = int(length) if length.isascii() and length.isdecimal() and len(length) < 16 else None
    if given is not None:
        part = _RANGE.fullmatch(given)
        first, last, whole = map(int, part.groups()) if part else (0, -1, 0)
        if not first <= last < whole or count not in (None, last - first + 1):
            told = f"Content-Range is {quoted(given)}; it must be as `bytes 100-199/200`, with as many bytes as it says"
            raise Refused(of_message(400, told, "CONTENT_RANGE"))
        return first, whole
    if count is None:
        row = await asyncio.to_thread(library.store.by_id, id)
        if row is not None and row.declared_bytes is None:
            told = "nobody has said how long the file is: send Content-Length, or describe the asset with size_bytes"
            raise Refused(of_message(411, told, "LENGTH_REQUIRED"))
    return 0, count


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    """Raises `Left`."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Left
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _documented(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    schema = model.model_json_schema()
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


_BYTES = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    "parameters": [
        {
            "name": "Content-Range",
            "in": "header",
            "required": False,
            "description": "`bytes 100-199/200`: these bytes of so many. Default: all of them.",
            "schema": {"type": "string"},
        }
    ],
}
