"""The library over gRPC: uploads in pieces, two tenants, faults by their codes, hostile names."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from assets.conftest import BUDGET, files, looked_at
from conftest import HANG_SECONDS
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from mediagen.v1 import asset_pb2 as pb
from mediagen.v1 import asset_pb2_grpc

from server.assets import uploads as uploading
from server.assets.library import Library
from server.assets.uploads import Uploads
from server.rpc.asset_service import AssetService
from server.rpc.interceptor import CallInterceptor

CONTENT = bytes(range(256)) * 40
LORA = pb.ASSET_TYPE_LORA
Code = grpc.StatusCode


def description(content: bytes = CONTENT, name: str = "style", **fields: object) -> pb.UploadAssetRequest:
    """As an honest sender says it, but for these fields."""
    said = {"type": LORA, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), **fields}
    return pb.UploadAssetRequest(description=pb.AssetDescription(name=name, **said))  # type: ignore[arg-type]


def chunk(content: bytes) -> pb.UploadAssetRequest:
    return pb.UploadAssetRequest(chunk=content)


@dataclass(frozen=True)
class Caller:
    """Calls of one tenant."""

    stub: asset_pb2_grpc.AssetServiceStub
    tenant: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("x-mediagen-tenant", self.tenant),)

    async def upload(self, *parts: pb.UploadAssetRequest) -> pb.Asset:
        return (await self.stub.UploadAsset(iter(parts), metadata=self.metadata)).asset

    async def get(self, asset: str) -> pb.Asset:
        return (await self.stub.GetAsset(pb.GetAssetRequest(asset=asset), metadata=self.metadata)).asset

    async def delete(self, asset: str) -> None:
        await self.stub.DeleteAsset(pb.DeleteAssetRequest(asset=asset), metadata=self.metadata)

    async def page(self, **asked: object) -> pb.ListAssetsResponse:
        return await self.stub.ListAssets(pb.ListAssetsRequest(**asked), metadata=self.metadata)  # type: ignore[arg-type]


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    """Empty."""
    made = Library(tmp_path / "assets", looked_at, BUDGET)
    yield made
    made.close()


@pytest.fixture
async def channel(library: Library) -> AsyncIterator[grpc.aio.Channel]:
    """A way to the service, behind the interceptor on a real port."""
    server, uploads = grpc.aio.server(interceptors=(CallInterceptor(),)), Uploads(library)
    asset_pb2_grpc.add_AssetServiceServicer_to_server(AssetService(library, uploads), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as connected:
        yield connected
    await server.stop(None)
    uploads.close()


@pytest.fixture
def ann(channel: grpc.aio.Channel) -> Caller:
    return Caller(asset_pb2_grpc.AssetServiceStub(channel), "ann")


@pytest.fixture
def bob(channel: grpc.aio.Channel) -> Caller:
    return Caller(asset_pb2_grpc.AssetServiceStub(channel), "bob")


def fault(error: grpc.RpcError) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Code, reason, and what is wrong by field."""
    info, wrong = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    status = rpc_status.from_call(AioError(error))
    assert status.details[0].Unpack(info)
    if len(status.details) > 1:
        status.details[1].Unpack(wrong)
    return error.code(), info.reason, {v.field: v.description for v in wrong.field_violations}


@dataclass(frozen=True)
class AioError:
    """An error of grpc.aio, as the status library asks for it."""

    error: grpc.aio.AioRpcError

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return tuple(self.error.trailing_metadata())

    def code(self) -> grpc.StatusCode:
        return self.error.code()

    def details(self) -> str | None:
        return self.error.details()


async def test_an_asset_is_brought_in_pieces_found_listed_and_deleted(ann: Caller, library: Library) -> None:
    brought = await ann.upload(
        description(preprocessor=""), *(chunk(CONTENT[i : i + 999]) for i in range(0, 10240, 999))
    )
    assert (brought.state, brought.family, list(brought.engines)) == (pb.ASSET_STATE_READY, "sd15", ["sd15"])
    assert (brought.size_bytes, brought.received_bytes, brought.owned) == (len(CONTENT), len(CONTENT), True)
    assert brought.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert await ann.get("style") == await ann.get(brought.id) == brought
    assert list((await ann.page()).assets) == [brought]
    await ann.delete("style")
    assert list((await ann.page()).assets) == []
    assert files(library) == []


async def test_a_broken_stream_goes_on_where_it_ended(ann: Caller) -> None:
    begun = asyncio.Event()

    async def broken() -> AsyncIterator[pb.UploadAssetRequest]:
        yield description()
        yield chunk(CONTENT[:4000])
        begun.set()
        await asyncio.Event().wait()

    call = ann.stub.UploadAsset(broken(), metadata=ann.metadata)
    async with asyncio.timeout(HANG_SECONDS):
        await begun.wait()
        while True:  # until the service has opened it, which is no event of ours
            with suppress(grpc.RpcError):
                if (await ann.get("style")).state == pb.ASSET_STATE_UPLOADING:
                    break
        call.cancel()
        while (left := await ann.get("style")).received_bytes < 4000:
            pass
    assert (left.state, left.received_bytes) == (pb.ASSET_STATE_UPLOADING, 4000)
    done = await ann.upload(description(offset=4000), chunk(CONTENT[4000:]))
    assert (done.id, done.state) == (left.id, pb.ASSET_STATE_READY)


async def test_an_upload_that_arrived_whole_and_was_not_looked_at_needs_no_byte_more(
    ann: Caller, library: Library
) -> None:
    with pytest.raises(grpc.RpcError):
        await ann.upload(description(), chunk(CONTENT[:-1]))
    with pytest.raises(grpc.RpcError) as early:
        await ann.upload(description(offset=len(CONTENT) - 1))
    assert fault(early.value)[:2] == (Code.FAILED_PRECONDITION, "INCOMPLETE")
    await ann.upload(description(offset=len(CONTENT) - 1), chunk(CONTENT[-1:]))
    with pytest.raises(grpc.RpcError) as again:
        await ann.upload(description(offset=len(CONTENT)))
    assert fault(again.value)[:2] == (Code.ALREADY_EXISTS, "NAME_TAKEN")


@pytest.mark.parametrize(
    ("parts", "code", "reason"),
    [
        ([description(), chunk(CONTENT[::-1])], Code.INVALID_ARGUMENT, "BAD_UPLOAD"),
        ([description(), chunk(CONTENT), chunk(b"!")], Code.INVALID_ARGUMENT, "BAD_UPLOAD"),
        ([description(b"bad"), chunk(b"bad")], Code.INVALID_ARGUMENT, "ASSET_REJECTED"),
        ([description(b"bug"), chunk(b"bug")], Code.INTERNAL, "BUG"),
        ([description(size_bytes=BUDGET + 1)], Code.RESOURCE_EXHAUSTED, "LIBRARY_FULL"),
        ([description(offset=5), chunk(CONTENT)], Code.OUT_OF_RANGE, "WRONG_OFFSET"),
        ([description(), description()], Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ([description(), pb.UploadAssetRequest()], Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ([description(bytes(2**21 + 1)), chunk(bytes(2**21 + 1))], Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ([chunk(CONTENT)], Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ([], Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    ],
)
async def test_what_is_wrong_with_an_upload_has_its_code_and_leaves_no_file(
    ann: Caller, library: Library, parts: list[pb.UploadAssetRequest], code: grpc.StatusCode, reason: str
) -> None:
    with pytest.raises(grpc.RpcError) as told:
        await ann.upload(*parts)
    assert fault(told.value)[:2] == (code, reason)
    assert all((library.folder / file).stat().st_size == 0 for file in files(library))


async def test_bytes_that_are_no_message_are_the_callers_mistake(channel: grpc.aio.Channel) -> None:
    call = channel.stream_unary("/mediagen.v1.AssetService/UploadAsset")(iter([b"\xff\xff"]))
    with pytest.raises(grpc.RpcError) as told:
        await call
    assert fault(told.value)[0] is Code.INVALID_ARGUMENT


async def test_a_sender_who_falls_silent_is_let_go_and_may_go_on(ann: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "SILENCE_SECONDS", 0.05)

    async def silent() -> AsyncIterator[pb.UploadAssetRequest]:
        yield description()
        yield chunk(CONTENT[:100])
        await asyncio.Event().wait()

    with pytest.raises(grpc.RpcError) as told:
        await asyncio.wait_for(ann.stub.UploadAsset(silent(), metadata=ann.metadata), HANG_SECONDS)
    assert fault(told.value)[:2] == (Code.DEADLINE_EXCEEDED, "STALLED")
    assert (await ann.get("style")).received_bytes == 100


async def test_one_upload_too_many_is_told_and_may_come_later(ann: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "UNDER_WAY", 1)
    ends = asyncio.Event()

    async def long() -> AsyncIterator[pb.UploadAssetRequest]:
        yield description()
        yield chunk(CONTENT)
        await ends.wait()

    first = ann.stub.UploadAsset(long(), metadata=ann.metadata)
    async with asyncio.timeout(HANG_SECONDS):
        while True:  # until the service has opened it, which is no event of ours
            with suppress(grpc.RpcError):
                if (await ann.get("style")).state == pb.ASSET_STATE_UPLOADING:
                    break
        with pytest.raises(grpc.RpcError) as told:
            await ann.upload(description(b"2", "second"), chunk(b"2"))
        assert fault(told.value)[:2] == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_UPLOADS")
        ends.set()
        assert (await first).asset.state == pb.ASSET_STATE_READY
        for name in ("second", "third"):  # every end gives its place back
            assert (await ann.upload(description(b"2", name), chunk(b"2"))).state == pb.ASSET_STATE_READY
        with pytest.raises(grpc.RpcError):
            await ann.upload(description(b"bad", "fourth"), chunk(b"bad"))
        assert (await ann.upload(description(b"2", "fifth"), chunk(b"2"))).state == pb.ASSET_STATE_READY


async def test_everything_wrong_with_a_description_is_told_at_once(ann: Caller) -> None:
    wrong = description(name="../x", type=0, size_bytes=0, sha256="abc", description="d" * 1001, preprocessor="CANNY!")
    with pytest.raises(grpc.RpcError) as told:
        await ann.upload(wrong)
    assert fault(told.value)[2].keys() == {"type", "name", "size_bytes", "sha256", "description", "preprocessor"}


async def test_a_controlnet_says_its_preprocessor_or_its_name_does(ann: Caller) -> None:
    named = await ann.upload(description(b"1", "tile-of-depth", type=pb.ASSET_TYPE_CONTROLNET), chunk(b"1"))
    said = await ann.upload(description(b"2", "canny", type=pb.ASSET_TYPE_CONTROLNET, preprocessor="mine"), chunk(b"2"))
    assert (named.preprocessor, said.preprocessor) == ("tile", "mine")
    assert (await ann.upload(description(b"3", "canny-lora"), chunk(b"3"))).preprocessor == ""
    with pytest.raises(grpc.RpcError) as told:
        await ann.upload(description(b"4", "x", preprocessor="canny"))
    assert fault(told.value)[2].keys() == {"preprocessor"}


async def test_tenants_see_their_own_and_what_is_public(ann: Caller, bob: Caller) -> None:
    await ann.upload(description(b"1", "private"), chunk(b"1"))
    shared = await ann.upload(description(b"2", "shared", public=True), chunk(b"2"))
    own = await bob.upload(description(b"3", "private"), chunk(b"3"))
    assert {(asset.name, asset.owned) for asset in (await bob.page()).assets} == {("private", True), ("shared", False)}
    assert await bob.get("private") == own
    for asked in ("shared", shared.id):
        with pytest.raises(grpc.RpcError) as refused:
            await bob.delete(asked)
        assert fault(refused.value)[:2] == (Code.PERMISSION_DENIED, "NOT_OWNER")
    await bob.delete("private")
    for asked in ("private", "nothing"):
        with pytest.raises(grpc.RpcError) as unknown:
            await bob.get(asked)
        assert fault(unknown.value)[:2] == (Code.NOT_FOUND, "NO_SUCH_ASSET")
        assert asked in unknown.value.details()
    assert (await ann.get("private")).owned


@pytest.mark.parametrize("tenant", ["", "a b", "x" * 65, "../a"])
async def test_a_tenant_has_a_name(ann: Caller, tenant: str) -> None:
    with pytest.raises(grpc.RpcError) as told:
        await Caller(ann.stub, tenant).page()
    assert fault(told.value)[2].keys() == {"x-mediagen-tenant"}


async def test_who_says_no_tenant_is_the_default_one(ann: Caller) -> None:
    await Caller(ann.stub, "default").upload(description(), chunk(CONTENT))
    assert (await ann.stub.GetAsset(pb.GetAssetRequest(asset="style"))).asset.owned


async def test_pages_follow_each_other_while_assets_come_and_go(ann: Caller) -> None:
    for i in range(7):
        await ann.upload(description(bytes([i]), f"a{i}"), chunk(bytes([i])))
    first = await ann.page(page_size=3, type=LORA, name_prefix="a", family="sd15")
    await ann.upload(description(b"new", "a-new"), chunk(b"new"))
    await ann.delete("a4")
    await ann.delete("a3")
    second = await ann.page(page_size=3, page_token=first.next_page_token)
    third = await ann.page(page_size=3, page_token=second.next_page_token or "0")
    names = [asset.name for page in (first, second, third) for asset in page.assets]
    assert names == ["a6", "a5", "a4", "a2", "a1", "a0"]
    assert second.next_page_token == ""


async def test_a_page_that_cannot_be_is_told_by_its_fields(ann: Caller) -> None:
    for asked, told in (
        ({"page_size": 1001, "page_token": "x", "type": 99}, {"page_size", "page_token", "type"}),
        ({"page_size": -1}, {"page_size"}),
    ):
        with pytest.raises(grpc.RpcError) as wrong:
            await ann.page(**asked)
        assert fault(wrong.value)[2].keys() == told


def everything(folder: Path) -> list[Path]:
    """Whatever lies in it, however deep."""
    return sorted(folder.rglob("*"))


def hostile_names(count: int) -> list[str]:
    """Paths, NULs, URLs, other scripts, SQL, the far too long; and the like by chance."""
    fixed = ["", ".", "..", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "C:\\a", "a\0b", "\0", "~", "~/a", "-rf"]
    fixed += [".hidden", "file:///etc/passwd", "http://a/b", "https://hf.co/x", "s3://a", "a%2fb", "a b", " a", "a\n"]
    fixed += [
        "\u0430",
        "\uff41",
        "a\u202eb",
        "é",
        "e\u0301",
        "\U0001f600",
        "'; DROP TABLE assets; --",
        '"',
        "a" * 129,
        "$HOME",
    ]
    fixed += [
        "`id`",
        "$(id)",
        "a;b",
        "a|b",
        "a&b",
        "a*",
        "a?",
        "[a]",
        "{a}",
        "<a>",
        "a:b",
        "a,b",
        "con\u0000.txt",
        "_a",
    ]
    chance, marks = random.Random(5), "/\\\0.. ~:%*?<>|'\"\n\t\u202e\uff0e\u2215\u00e9\u0430"
    while len(fixed) < count:
        letters = [chance.choice("ab./") for _ in range(chance.randrange(12))]
        letters.insert(chance.randrange(len(letters) + 1), chance.choice(marks.replace(".", "")))
        fixed.append("".join(letters))
    return fixed


async def test_a_thousand_hostile_names_are_no_names_and_touch_no_file(
    ann: Caller, library: Library, tmp_path: Path
) -> None:
    before = everything(tmp_path)
    for name in hostile_names(1000):
        with pytest.raises(grpc.RpcError) as told:
            await ann.upload(description(name=name), chunk(CONTENT))
        assert fault(told.value)[2].keys() == {"name"}, name
        for call in (ann.get, ann.delete):
            with pytest.raises(grpc.RpcError) as unknown:
                await call(name)
            assert fault(unknown.value)[:2] == (Code.NOT_FOUND, "NO_SUCH_ASSET"), name
    assert everything(tmp_path) == before
