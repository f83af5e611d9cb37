"""A graph's tensors as onnx itself tells them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from server.initializers import initializers

REPOSITORY = Path(__file__).resolve().parents[1] / "model_repository"


@pytest.mark.parametrize("engine", ["sd15_unet", "sdxl_text_encoder_2"])
def test_tensors_are_told_as_onnx_tells_them(engine: str) -> None:
    path = REPOSITORY / engine / "1" / "model.onnx"
    wanted = [
        (tensor.name, tuple(tensor.dims), {entry.key: entry.value for entry in tensor.external_data})
        for tensor in onnx.load(str(path), load_external_data=False).graph.initializer
    ]
    assert [(tensor.name, tensor.shape, tensor.beside) for tensor in initializers(path)] == wanted


def test_what_lies_within_a_graph_has_its_bytes_there(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones((3, 100), np.float32), "w")
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [], [weights])), str(path))
    (found,) = initializers(path)
    assert (found.name, found.shape, found.beside) == ("w", (3, 100), {})
    assert found.stored >= 1200
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(ValueError, match="ends"):
        initializers(path)
