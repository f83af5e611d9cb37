"""The committed model repository is what the exporter makes of the committed checkpoints.

Only the text encoders are traced anew, which takes seconds; of the others everything but the inside of the graph is
compared.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
import pytest

from export import graphs
from export.checkpoint import Checkpoint, open_checkpoint, open_component
from export.config_pbtxt import render
from export.recipes import EngineRecipe, TemplateRecipe, examples, image_prompt, sd3, sd15, sdxl
from export.repository import Recipe
from export.tokenizer import write_tokenizer
from export.weights import load_component, stored_tensors
from server.families.card import Card

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = ROOT / "model_repository"
CHECKPOINTS = ROOT / "demo" / "checkpoints"
AGAIN = "run `make models` and commit the result"


@dataclass(frozen=True)
class Default:
    """One default checkpoint as the exporter sees it."""

    recipe: Recipe
    checkpoint: Checkpoint
    card: Card
    engines: tuple[EngineRecipe, ...]
    templates: tuple[TemplateRecipe, ...]


def _checkpoint(name: str) -> Checkpoint:
    return open_checkpoint(str(CHECKPOINTS / name), None, ())


def _default(name: str, recipe: Recipe, checkpoint: Checkpoint) -> Default:
    title = json.loads((REPOSITORY / f"{name}.json").read_text())["title"]  # any will do: it is for people
    card = recipe.card(checkpoint, name, title, None)
    engines, templates = recipe.recipes(checkpoint, card), recipe.templates(checkpoint, card)
    return Default(recipe, checkpoint, card, engines, templates)


@pytest.fixture(scope="module", params=["sd15", "sdxl", "ssd", "sd3"])
def default(request: pytest.FixtureRequest) -> Default:
    match request.param:
        case "sd15":
            return _default("sd15", sd15, _checkpoint("sd15"))
        case "sdxl":
            return _default("sdxl", sdxl, _checkpoint("sdxl").join("refiner", _checkpoint("sdxl-refiner")))
        case "ssd":
            vision = open_component(str(CHECKPOINTS / "sdxl" / image_prompt.ENCODER), None, image_prompt.ENCODER)
            return _default("ssd", sdxl, _checkpoint("ssd").join(image_prompt.ENCODER, vision))
        case _:
            return _default("sd3", sd3, _checkpoint("sd3"))


def test_the_card_is_that_of_the_checkpoint(default: Default) -> None:
    """But for what `export photomaker` adds."""
    found = json.loads((REPOSITORY / f"{default.card.name}.json").read_text())
    expected = json.loads(json.dumps(asdict(default.card)))
    added = {"transfer_side", "transfer_lora"} & expected.keys()
    assert found == expected | {name: found[name] for name in added}, AGAIN


def test_the_configs_are_those_of_the_specs(default: Default) -> None:
    for recipe in (*default.engines, *(template.engine for template in default.templates)):
        found = (REPOSITORY / recipe.spec.name / "config.pbtxt").read_text()
        assert found == render(recipe.spec, "openvino", {"precision": "float32"}), AGAIN


def test_the_weights_are_the_checkpoints_own_bytes(default: Default) -> None:
    for recipe in default.engines:
        (file,) = default.checkpoint.weights(recipe.component).files
        found = REPOSITORY / recipe.spec.name / "1" / "weights.safetensors"
        assert found.read_bytes() == file.read_bytes(), AGAIN


def test_the_tokenizers_are_the_checkpoints(default: Default, tmp_path: Path) -> None:
    for recipe in default.engines:
        if recipe.tokenizer is not None:
            tokens = int(recipe.spec.inputs[0].shape[1])
            write_tokenizer(recipe.tokenizer, default.checkpoint, recipe.component, tokens, tmp_path / "tokenizer.json")
            found = REPOSITORY / recipe.spec.name / "tokenizer.json"
            assert found.read_bytes() == (tmp_path / "tokenizer.json").read_bytes(), AGAIN


def test_every_initializer_of_every_graph_lies_where_the_graph_says(default: Default) -> None:
    for recipe in default.engines:
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


def test_every_initializer_of_every_template_says_whose_it_is(default: Default) -> None:
    """A UNet's has the shape that it has in the engine of the checkpoint's own weights, under the same name."""
    for template in default.templates:
        version = REPOSITORY / template.engine.spec.name / "1"
        assert not (version / "weights.safetensors").exists()
        graph = onnx.load(version / "model.onnx", load_external_data=False).graph
        assert [value.name for value in graph.input] == [port.name for port in template.engine.spec.inputs], AGAIN
        own = stored_tensors(REPOSITORY / f"{default.card.name}_unet" / "1" / "weights.safetensors")
        for tensor in graph.initializer:
            if tensor.external_data:
                place = {entry.key: entry.value for entry in tensor.external_data}
                owner, _, name = tensor.name.partition("/")
                assert place["location"] == owner
                assert owner != "unet" or tuple(tensor.dims) == own[name].shape, AGAIN


def test_the_text_encoders_traced_anew_are_the_committed_graphs(default: Default) -> None:
    for recipe in default.engines:
        if recipe.tokenizer is None:
            continue
        kind = default.recipe.COMPONENTS[recipe.component]
        module = recipe.wrap(load_component(kind, default.checkpoint, recipe.component))
        version = REPOSITORY / recipe.spec.name / "1"
        model = graphs.trace(recipe, module, examples(recipe, recipe.traced, seed=1))
        anew = graphs.attach_weights(model, "weights.safetensors", stored_tensors(version / "weights.safetensors"))
        assert (version / "model.onnx").read_bytes() == anew, AGAIN


def test_the_report_says_that_every_engine_equals_torch(default: Default) -> None:
    report = (REPOSITORY / f"{default.card.name}.parity.md").read_text()
    assert report.count("| equal |") >= len(default.engines) + len(default.templates), AGAIN
    assert "NOT EQUAL" not in report
