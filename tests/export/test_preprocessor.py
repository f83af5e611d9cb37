"""Networks that make control maps, as engines: a depth model of transformers', and ONNX files of one's own."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from transformers import DPTConfig, DPTForDepthEstimation

from export.__main__ import main
from server.adapters.control import preprocessor
from server.engines import golden
from server.engines.local import LocalEngines
from server.engines.openvino_runtime import OpenVINOEngine


def depth_model(folder: Path) -> Path:
    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=64, patch_size=16,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, is_hybrid=False,
        reassemble_factors=[4, 2, 1, 0.5],
    )  # fmt: skip
    model = DPTForDepthEstimation(config)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    model.half().save_pretrained(folder)
    return folder


def onnx_file(path: Path, name: str = "pixels", channels: int = 3) -> Path:
    """White where the picture is black."""
    value = {
        port: helper.make_tensor_value_info(port, TensorProto.UINT8, ["rows", "h", "w", channels])
        for port in (name, "map")
    }
    nodes = [helper.make_node("Sub", ["white", name], ["map"])]
    white = helper.make_tensor("white", TensorProto.UINT8, [], [255])
    graph = helper.make_graph(nodes, "inverse", [value[name]], [value["map"]], [white])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


async def test_a_depth_model_becomes_an_engine_whose_maps_go_from_black_to_white(tmp_path: Path) -> None:
    model, out = depth_model(tmp_path / "depth"), tmp_path / "repository"
    assert main(["preprocessor", "depth", "--model", str(model), "--out", str(out)]) == 0
    engine = OpenVINOEngine(out / "preprocessor_depth" / "1" / "model.onnx", ["map"], "float32")
    pixels = np.random.RandomState(0).randint(0, 256, (1, 104, 72, 3), np.uint8)
    found = engine.run({"pixels": pixels})["map"]
    assert (found.shape, found.dtype) == (pixels.shape, np.uint8)
    assert (found.min(), found.max()) == (0, 255)
    assert (found == found[..., :1]).all()
    home = LocalEngines(out, [preprocessor("depth")])
    await home.load("preprocessor_depth")
    await golden.check(home, out, [preprocessor("depth")])
    await home.close()


def test_an_onnx_file_is_taken_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "repository"
    assert main(["preprocessor", "inverse", "--model", str(onnx_file(tmp_path / "m.onnx")), "--out", str(out)]) == 0
    engine = OpenVINOEngine(out / "preprocessor_inverse" / "1" / "model.onnx", ["map"], "float32")
    pixels = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    np.testing.assert_array_equal(engine.run({"pixels": pixels})["map"], 255 - pixels)


def test_what_is_no_preprocessor_is_refused_with_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "empty").mkdir()
    for model, reason in (
        (onnx_file(tmp_path / "other.onnx", name="image"), "it takes [('image', 'uint8', 4, 3)]"),
        (onnx_file(tmp_path / "grey.onnx", channels=1), "it takes [('pixels', 'uint8', 4, 1)]"),
        (tmp_path / "text.onnx", "is no ONNX model"),
        (tmp_path / "empty", "is no depth model"),
    ):
        assert main(["preprocessor", "depth", "--model", str(model), "--out", str(tmp_path / "repository")]) == 1
        assert reason in capsys.readouterr().err
        assert not (tmp_path / "repository").exists()
