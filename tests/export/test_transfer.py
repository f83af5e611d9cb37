"""A PhotoMaker file beside an SDXL checkpoint: two engines, a LoRA among the assets, a card that names both."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import CLIPVisionConfig

from export import photomaker
from export.__main__ import main
from server.engines.openvino_runtime import OpenVINOEngine

SIDE, WIDTH = 64, 256  # of the default SDXL's text states
REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("sdxl.json", "sdxl.parity.md"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


def write(folder: Path, second: int = 128) -> Path:
    """A file of the published layout and its config.json."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        patch_size=32, projection_dim=128,
    )  # fmt: skip
    encoder = photomaker.IdEncoder(config, second)
    lora = {"unet.down_blocks.1.attn.processor.to_q_lora.down.weight": torch.randn(4, 8)}
    folder.mkdir(exist_ok=True)
    torch.save({"id_encoder": encoder.state_dict(), "lora_weights": lora}, folder / "photomaker.bin")
    config.save_pretrained(folder)
    return folder / "photomaker.bin"


def content(folder: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_becomes_two_engines_a_lora_and_a_card_that_names_it(repository: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "photomaker")
    command = ["photomaker", "--checkpoint", str(file), "--engine", "sdxl", "--out", str(repository)]
    assert main(command) == 0
    once = content(repository)
    assert main(command) == 0
    assert content(repository) == once
    card = json.loads((repository / "sdxl.json").read_text())
    before = json.loads((REPOSITORY / "sdxl.json").read_text())
    lora = repository / "assets" / "sdxl-transfer.safetensors"
    told = {"transfer_side": SIDE, "transfer_lora": hashlib.sha256(lora.read_bytes()).hexdigest()}
    assert card == {**before, **told}
    assert load_file(lora)["unet.down_blocks.1.attn.processor.to_q_lora.down.weight"].shape == (4, 8)
    report = (repository / "sdxl.parity.md").read_text()
    assert report.count("| sdxl_transfer_") == 2
    encoder, _ = photomaker.load(file, CLIPVisionConfig.from_json_file(file.with_name("config.json")))
    random = np.random.RandomState(1)
    pixels = random.standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    text = random.standard_normal((2, WIDTH)).astype(np.float32)
    engines = {name: repository / f"sdxl_transfer_{name}" / "1" / "model.onnx" for name in ("encoder", "fusion")}
    identity = OpenVINOEngine(engines["encoder"], ["identity"], "float32").run({"pixel_values": pixels})["identity"]
    fused = OpenVINOEngine(engines["fusion"], ["fused"], "float32").run({"text": text, "identity": identity})["fused"]
    expected = encoder.identity(torch.from_numpy(pixels))
    np.testing.assert_allclose(identity, expected, atol=2e-3 * float(expected.abs().max()))  # stored as halves
    reference = encoder.fuse_module(torch.from_numpy(text), expected)
    np.testing.assert_allclose(fused, reference, atol=2e-3 * float(reference.abs().max()))


class Bomb:
    """What a hostile pickle holds."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("a pickle ran",)


def test_what_is_no_such_file_is_refused_and_nothing_runs_or_stays(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path / "photomaker")
    before = content(repository)
    narrow = write(tmp_path / "narrow", second=64)
    torch.save({"id_encoder": Bomb(), "lora_weights": {}}, tmp_path / "photomaker" / "bomb.bin")
    torch.save({"something": {}}, tmp_path / "photomaker" / "other.bin")
    (tmp_path / "photomaker" / "cut.bin").write_bytes(good.read_bytes()[:1000])
    for file, reason in (
        (narrow, "makes identities of 192 channels, sdxl's text states have 256"),
        (good.with_name("bomb.bin"), "is no PhotoMaker v1 file"),
        (good.with_name("other.bin"), "is no PhotoMaker v1 file"),
        (good.with_name("cut.bin"), "is no PhotoMaker v1 file"),
    ):
        assert main(["photomaker", "--checkpoint", str(file), "--engine", "sdxl", "--out", str(repository)]) == 1
        told = capsys.readouterr()
        assert reason in told.err
        assert told.err.count("\n") == 1
        assert "a pickle ran" not in told.out
        assert content(repository) == before
