"""The committed model repository is what the exporter makes of the committed checkpoint.

Only the text encoder is traced anew, which takes seconds; of the others everything but the inside of the graph is
compared.
"""

import json
from dataclasses import asdict
from pathlib import Path

import onnx
import pytest

from export import graphs
from export.checkpoint import Checkpoint, open_checkpoint
from export.config_pbtxt import render
from export.recipes import EngineRecipe, clip_tokenizer, examples, sd15
from export.tokenizer import write_tokenizer
from export.weights import load_component, stored_tensors
from server.families.sd15 import Sd15Card

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = ROOT / "model_repository"
AGAIN = "run `make models` and commit the result"


@pytest.fixture(scope="module")
def default() -> Checkpoint:
    return open_checkpoint(str(ROOT / "demo" / "checkpoints" / "sd15"), None, tuple(sd15.COMPONENTS))


@pytest.fixture(scope="module")
def card(default: Checkpoint) -> Sd15Card:
    title = json.loads((REPOSITORY / "sd15.json").read_text())["title"]  # any will do: it is for people
    return sd15.card(default, "sd15", title, None)


@pytest.fixture(scope="module")
def recipes(default: Checkpoint, card: Sd15Card) -> tuple[EngineRecipe, ...]:
    return sd15.recipes(default, card)


def test_the_card_is_that_of_the_checkpoint(card: Sd15Card) -> None:
    found = json.loads((REPOSITORY / "sd15.json").read_text())
    assert found == asdict(card) | {"title": found["title"]}, AGAIN


def test_the_configs_are_those_of_the_specs(recipes: tuple[EngineRecipe, ...]) -> None:
    for recipe in recipes:
        found = (REPOSITORY / recipe.spec.name / "config.pbtxt").read_text()
        assert found == render(recipe.spec, "openvino", {"precision": "float32"}), AGAIN


def test_the_weights_are_the_checkpoints_own_bytes(default: Checkpoint, recipes: tuple[EngineRecipe, ...]) -> None:
    for recipe in recipes:
        (file,) = default.weights(recipe.component).files
        found = REPOSITORY / recipe.spec.name / "1" / "weights.safetensors"
        assert found.read_bytes() == file.read_bytes(), AGAIN


def test_the_tokenizer_is_the_checkpoints(default: Checkpoint, tmp_path: Path) -> None:
    write_tokenizer(clip_tokenizer("tokenizer"), default, "text_encoder", 77, tmp_path / "tokenizer.json")
    found = REPOSITORY / "sd15_text_encoder" / "tokenizer.json"
    assert found.read_bytes() == (tmp_path / "tokenizer.json").read_bytes(), AGAIN


def test_every_initializer_of_every_graph_lies_where_the_graph_says(recipes: tuple[EngineRecipe, ...]) -> None:
    for recipe in recipes:
        version = REPOSITORY / recipe.spec.name / "1"
        stored = stored_tensors(version / "weights.safetensors")
        graph = onnx.load(version / "model.onnx", load_external_data=False).graph
        assert [value.name for value in graph.input] == [port.name for port in recipe.spec.inputs], AGAIN
        for tensor in graph.initializer:
            if tensor.external_data:
                place = {entry.key: entry.value for entry in tensor.external_data}
                expected = stored[tensor.name]
                found = (tuple(tensor.dims), int(place["offset"]), int(place["length"]))
                assert found == (expected.shape, expected.offset, expected.length), AGAIN


def test_the_text_encoder_traced_anew_is_the_committed_graph(
    default: Checkpoint, recipes: tuple[EngineRecipe, ...]
) -> None:
    recipe = recipes[0]
    module = recipe.wrap(load_component(sd15.COMPONENTS[recipe.component], default, recipe.component))
    version = REPOSITORY / recipe.spec.name / "1"
    model = graphs.trace(recipe, module, examples(recipe, recipe.traced, seed=1))
    anew = graphs.attach_weights(model, "weights.safetensors", stored_tensors(version / "weights.safetensors"))
    assert (version / "model.onnx").read_bytes() == anew, AGAIN


def test_the_report_says_that_every_engine_equals_torch(recipes: tuple[EngineRecipe, ...]) -> None:
    report = (REPOSITORY / "sd15.parity.md").read_text()
    assert report.count("| equal |") == len(recipes), AGAIN
    assert "NOT EQUAL" not in report
