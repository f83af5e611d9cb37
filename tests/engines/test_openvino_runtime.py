"""Compiled engines are kept for the next start, and never served in place of the weights that are there now."""

from pathlib import Path

import numpy as np
import pytest
from engines import toy
from safetensors.numpy import load_file, save_file

from server.engines.openvino_runtime import OpenVINOEngine

OUTPUTS = [port.name for port in toy.WORDS.outputs]


def answer(repository: Path, cache: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    model = repository / toy.WORDS.name / "1" / "model.onnx"
    return OpenVINOEngine(model, OUTPUTS, "float32", cache).run(toy.example(toy.WORDS))["hidden_states"]


def test_changed_weights_are_compiled_anew_and_only_the_last_compilation_is_kept(tmp_path: Path) -> None:
    toy.write_repository(tmp_path / "repository")
    cache = tmp_path / "cache"
    first = answer(tmp_path / "repository", cache)
    (kept,) = cache.glob("*.blob")
    assert np.array_equal(answer(tmp_path / "repository", cache), first)
    assert list(cache.glob("*.blob")) == [kept]
    weights = tmp_path / "repository" / toy.WORDS.name / "1" / "weights.safetensors"
    save_file({name: tensor * np.float16(2) for name, tensor in load_file(weights).items()}, weights)
    assert np.array_equal(answer(tmp_path / "repository", cache), 2 * first)
    (replaced,) = cache.glob("*.blob")
    assert replaced != kept


def test_an_unknown_precision_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'float8', must be one of float32, bfloat16"):
        OpenVINOEngine(tmp_path / "model.onnx", OUTPUTS, "float8")


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.onnx is missing: export"):
        OpenVINOEngine(tmp_path / "model.onnx", OUTPUTS, "float32")
