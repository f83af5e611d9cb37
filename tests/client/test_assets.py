"""`mediagen assets` against the library's own service on a port, as a person uses it."""

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from assets.conftest import BUDGET, files, looked_at
from mediagen.assets import ATTEMPTS, bring
from mediagen.client import Client, MediagenError
from mediagen.command import app
from mediagen.sources import NoSource, source
from mediagen.v1 import asset_pb2 as pb
from mediagen.v1 import asset_pb2_grpc
from safetensors.numpy import load, load_file, save_file
from typer.testing import CliRunner, Result

from server.assets import uploads as uploading
from server.assets.library import Library
from server.assets.uploads import Uploads
from server.engines.port import EngineUnavailable
from server.rpc.asset_service import AssetService
from server.rpc.interceptor import CallInterceptor, Context


class Breaking(AssetService):
    """Its streams break after so many pieces, as often as `breaks` says."""

    breaks = 0
    pieces = 2

    async def UploadAsset(
        self, requests: AsyncIterator[pb.UploadAssetRequest], context: Context
    ) -> pb.UploadAssetResponse:
        async def cut() -> AsyncIterator[pb.UploadAssetRequest]:
            left = self.pieces + 1  # and the description
            async for request in requests:
                if self.breaks > 0 and left == 0:
                    self.breaks -= 1
                    raise EngineUnavailable("gone", retry_seconds=0)
                left -= 1
                yield request

        return await super().UploadAsset(cut(), context)


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    """Empty; room for megabytes."""
    made = Library(tmp_path / "library", looked_at, 100 * BUDGET)
    yield made
    made.close()


@pytest.fixture
def service(library: Library) -> Iterator[tuple[Breaking, str]]:
    """The service and its address, in a loop of its own: the command does not wait."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    uploads = Uploads(library)
    servicer = Breaking(library, uploads)

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(interceptors=(CallInterceptor(),))
        asset_pb2_grpc.add_AssetServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    yield servicer, f"127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(server.stop(None), loop).result(30)
    uploads.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()


Command = Callable[..., Result]


@pytest.fixture
def assets(service: tuple[Breaking, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, in the test's folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["assets", *arguments, "--address", service[1]])


def test_an_asset_is_uploaded_listed_shown_and_deleted(assets: Command, tmp_path: Path, library: Library) -> None:
    (tmp_path / "neon.safetensors").write_bytes(b"neon")
    result = assets("upload", "neon.safetensors", "--type", "lora", "--public", "--description", "[b]right", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["name"], told["state"], told["type"], told["size_bytes"]) == ("neon", "ready", "lora", 4)
    assert told["sha256"] == hashlib.sha256(b"neon").hexdigest()
    assert json.loads(assets("list", "--json", "--type", "LORA").stdout) == [told]
    assert json.loads(assets("list", "--json", "--prefix", "x").stdout) == []
    assert json.loads(assets("show", "neon", "--tenant", "bob", "--json").stdout)["owned"] is False
    table = assets("list").stdout
    assert all(word in table for word in ("neon", "lora", "sd15", "ready", "yours, public"))
    assert "[b]right" in assets("show", "neon").stdout
    refused = assets("delete", "neon", "--tenant", "bob")
    assert (refused.exit_code, refused.stderr.split(":")[0]) == (1, "PERMISSION_DENIED")
    assert "neon is gone" in assets("delete", "neon").stderr
    assert files(library) == []


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("upload", "neon.safetensors"), 2, "textual_inversion"),
        (("upload", "neon.safetensors", "--type", "pickle"), 2, "textual_inversion"),
        (("upload", "nothing.safetensors", "--type", "lora"), 2, "nothing.safetensors"),
        (("upload", "neon.safetensors", "--type", "lora", "--name", "../x"), 1, "description.name"),
        (("upload", "bad.safetensors", "--type", "lora"), 1, "it is bad; send a good one"),
        (("upload", "empty", "--type", "checkpoint"), 1, "no diffusers folder"),
        (("show", "nothing"), 1, "NOT_FOUND"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    assets: Command, tmp_path: Path, arguments: tuple[str, ...], status: int, told: str
) -> None:
    (tmp_path / "neon.safetensors").write_bytes(b"neon")
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    (tmp_path / "empty").mkdir()
    result = assets(*arguments)
    assert result.exit_code == status, result.stderr
    assert told.removeprefix("description.") in result.stderr


def test_a_broken_stream_goes_on_by_itself(assets: Command, service: tuple[Breaking, str], tmp_path: Path) -> None:
    content = np.random.default_rng(5).bytes(9 * 2**20)
    (tmp_path / "big.safetensors").write_bytes(content)
    service[0].breaks = 3
    result = assets("upload", "big.safetensors", "--type", "vae", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["sha256"] == hashlib.sha256(content).hexdigest()
    assert service[0].breaks == 0


def test_who_gets_no_further_gives_up_and_the_next_call_goes_on(service: tuple[Breaking, str], tmp_path: Path) -> None:
    servicer, address = service
    content = np.random.default_rng(5).bytes(5 * 2**20)
    (tmp_path / "big.safetensors").write_bytes(content)
    what, told = source(tmp_path / "big.safetensors"), []
    described = pb.AssetDescription(
        name="big", type=pb.ASSET_TYPE_VAE, size_bytes=what.size, sha256=what.sha256(lambda more: None)
    )
    with Client(address) as client:
        servicer.breaks, servicer.pieces = 100, 3
        with pytest.raises(MediagenError, match="gone"):
            bring(_Once(client, servicer), described, what, told.append, wait=lambda seconds: None)
        servicer.breaks = 0
        begun = len(told)
        assert bring(client, described, what, told.append).state == pb.ASSET_STATE_READY
        assert told[begun] >= 3 * 2**20  # not from the start
        assert bring(client, described, what, told.append).state == pb.ASSET_STATE_READY  # and a lost reply is no loss


def test_equal_bytes_with_another_description_are_another_wish(service: tuple[Breaking, str], tmp_path: Path) -> None:
    (tmp_path / "small.safetensors").write_bytes(b"small")
    what = source(tmp_path / "small.safetensors")
    said = {"name": "small", "size_bytes": what.size, "sha256": what.sha256(lambda more: None)}
    with Client(service[1]) as client:
        first = bring(client, pb.AssetDescription(type=pb.ASSET_TYPE_VAE, **said), what, lambda sent: None)
        assert bring(client, pb.AssetDescription(type=pb.ASSET_TYPE_VAE, **said), what, lambda sent: None) == first
        for other in ({"public": True}, {"description": "mine"}, {"type": pb.ASSET_TYPE_LORA}):
            described = pb.AssetDescription(**{"type": pb.ASSET_TYPE_VAE, **said, **other})
            with pytest.raises(MediagenError, match="you have an asset named small"):
                bring(client, described, what, lambda sent: None)


def test_who_finds_the_service_crowded_comes_again(
    service: tuple[Breaking, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.safetensors").write_bytes(b"small")
    what, waited = source(tmp_path / "small.safetensors"), []
    monkeypatch.setattr(uploading, "UNDER_WAY", 0)

    def wait(seconds: float) -> None:
        waited.append(seconds)
        monkeypatch.setattr(uploading, "UNDER_WAY", 1)

    described = pb.AssetDescription(
        name="small", type=pb.ASSET_TYPE_VAE, size_bytes=what.size, sha256=what.sha256(lambda more: None)
    )
    with Client(service[1]) as client:
        assert bring(client, described, what, lambda sent: None, wait).state == pb.ASSET_STATE_READY
    assert waited == [5.0]


class _Once(Client):
    """A client whose service lets nothing through after the first break."""

    def __init__(self, client: Client, servicer: Breaking) -> None:
        self._client, self._servicer, self.attempts = client, servicer, 0

    def asset(self, asset: str, timeout: float | None = None) -> pb.Asset:
        return self._client.asset(asset, timeout)

    def upload(self, description, pieces, progress):  # type: ignore[no-untyped-def]
        self.attempts += 1
        assert self.attempts <= ATTEMPTS + 2
        try:
            return self._client.upload(description, pieces, progress)
        finally:
            self._servicer.pieces = 0


def save(folder: Path, name: str, **tensors: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A component's weights by chance."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(len(tensors))
    made = {key: random.normal(size=shape).astype(np.float16) for key, shape in tensors.items()}
    save_file(made, folder / name, {"format": "pt"})
    return made


def test_a_diffusers_folder_is_packed_into_one_stream_with_prefixes(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    wanted = {
        **{f"unet.{k}": v for k, v in save(folder / "unet", "a-00001-of-00002.safetensors", x=(3, 5)).items()},
        **{f"unet.{k}": v for k, v in save(folder / "unet", "a-00002-of-00002.safetensors", y=(7,), z=(1,)).items()},
        **{f"text_encoder.{k}": v for k, v in save(folder / "text_encoder", "model.safetensors", x=(2, 2)).items()},
        **{f"vae.{k}": v for k, v in save(folder / "vae", "model.fp16.safetensors", w=(2,)).items()},
    }
    save(folder / "text_encoder", "model.fp16.safetensors", x=(2, 2))  # the other is taken
    save(folder / "safety_checker", "model.safetensors", s=(9,))
    (folder / "unet" / "config.json").write_text("{}")
    what = source(folder)
    content = b"".join(what.read(0))
    assert (what.name, what.packed, what.size) == ("mine", True, len(content))
    assert what.sha256(lambda more: None) == hashlib.sha256(content).hexdigest()
    packed = load(content)
    assert packed.keys() == wanted.keys()
    assert all(np.array_equal(packed[key], wanted[key]) for key in wanted)
    for offset in (0, 1, 7, 8, 100, len(content) // 2, len(content) - 1, len(content)):
        assert b"".join(what.read(offset)) == content[offset:]


def test_a_components_own_folder_is_its_file(tmp_path: Path) -> None:
    made = save(tmp_path / "vae", "diffusion_pytorch_model.safetensors", w=(2,))
    what = source(tmp_path / "vae")
    assert not what.packed
    (tmp_path / "copy").write_bytes(b"".join(what.read(0)))
    assert np.array_equal(load_file(tmp_path / "copy")["w"], made["w"])


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0{}x", b"\x04\0\0\0\0\0\0\0nope", b"\x02\0\0\0\0\0\0\0[]"]
)
def test_a_folder_with_a_damaged_file_is_told_before_anything_is_sent(tmp_path: Path, content: bytes) -> None:
    save(tmp_path / "unet", "a.safetensors", x=(3,))
    (tmp_path / "unet" / "b.safetensors").write_bytes(content)
    with pytest.raises(NoSource, match=r"b\.safetensors"):
        source(tmp_path)


def test_a_tensor_that_two_files_have_is_told(tmp_path: Path) -> None:
    save(tmp_path / "unet", "a.safetensors", x=(3,))
    save(tmp_path / "unet", "b.safetensors", x=(3,))
    with pytest.raises(NoSource, match="tensor x"):
        source(tmp_path)
