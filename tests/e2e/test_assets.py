"""Assets brought to the running service: real files, looked at against the default engines."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import ROOT, RunningService
from mediagen.client import Client
from mediagen.command import app
from mediagen.v1 import asset_pb2 as pb
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

Assets = Callable[..., Result]


@pytest.fixture
def assets(service: RunningService) -> Assets:
    return lambda *arguments: CliRunner().invoke(
        app, ["assets", *arguments, "--tenant", "e2e", "--address", service.address]
    )


def uploaded(result: Result) -> dict[str, object]:
    assert result.exit_code == 0, result.stderr
    told: dict[str, object] = json.loads(result.stdout)
    return told


def test_a_diffusers_folder_becomes_a_checkpoint_of_the_engine_it_fits(assets: Assets, service: RunningService) -> None:
    told = uploaded(assets("upload", str(ROOT / "demo/checkpoints/sd15"), "--name", "mine", "--json"))
    assert (told["state"], told["type"], told["family"]) == ("ready", "checkpoint", "sd15")
    assert told["engines"] == ["sd15"]
    reply = httpx.get(f"http://{service.http_address}/v1/assets/mine", headers={"x-mediagen-tenant": "e2e"})
    assert reply.json()["asset"]["sha256"] == told["sha256"]
    assert assets("delete", "mine").exit_code == 0


def test_an_inversion_is_looked_at(assets: Assets, tmp_path: Path) -> None:
    save_file({"emb_params": np.ones((2, 5), np.float32)}, tmp_path / "narrow.safetensors")
    refused = assets("upload", str(tmp_path / "narrow.safetensors"), "--type", "textual_inversion")
    assert refused.exit_code == 1
    assert "INVALID_ARGUMENT" in refused.stderr
    assert assets("show", "narrow", "--json").exit_code == 0
    assert assets("delete", "narrow").exit_code == 0


@pytest.mark.parametrize("content", [b"\x80\x04\x95pickle", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}"])
def test_what_is_no_safetensors_file_is_refused_with_a_reason(
    assets: Assets, service: RunningService, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "odd.safetensors").write_bytes(content)
    refused = assets("upload", str(tmp_path / "odd.safetensors"), "--type", "lora")
    assert refused.exit_code == 1
    with Client(service.address, "e2e") as client:
        (told,) = client.assets(pb.ListAssetsRequest(name_prefix="odd"))
        client.delete_asset("odd")
    assert told.state == pb.ASSET_STATE_REJECTED
    assert told.reason in refused.stderr


def test_an_empty_file_is_refused_before_it_is_an_asset(assets: Assets, tmp_path: Path) -> None:
    (tmp_path / "empty.safetensors").touch()
    refused = assets("upload", str(tmp_path / "empty.safetensors"), "--type", "lora")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("size_bytes: 0 is not in 1..")
    assert assets("show", "empty").stderr.startswith("NOT_FOUND")
