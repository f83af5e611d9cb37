"""What of an SD3 checkpoint becomes engines, and what is refused before any work. Its engines' equality with torch and
with diffusers is shown in tests/parity."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from parity import tiny_sd3
from transformers import T5Tokenizer

from export import ExportError, graphs, parity
from export.checkpoint import Checkpoint, open_checkpoint
from export.recipes import examples, sd3
from export.tokenizer import write_tokenizer
from export.weights import stored_tensors, write_weights
from server.families.sd3 import engines
from server.levels import FlowScheduler
from server.prompts.weights import parse
from server.tokenizer import TextTokenizer

Change = Callable[..., Checkpoint]


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(str(folder), None, tuple(sd3.COMPONENTS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with T5. Shared: never write into it."""
    folder = tmp_path_factory.mktemp("sd3") / "tiny"
    tiny_sd3.write(folder, t5=True)
    return folder


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Change:
    """A copy of the checkpoint with fields of a JSON file in it changed."""
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)

    def change(name: str, **fields: object) -> Checkpoint:
        path = copy / name
        content = {**json.loads(path.read_text()), **fields}
        path.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))
        return opened(copy)

    return change


def test_the_card_says_what_the_checkpoint_holds(folder: Path) -> None:
    card = sd3.card(opened(folder), "sd3", "a tiny one", None)
    assert (card.text_width, card.text_2_width, card.joint_width) == (16, 24, 48)
    assert (card.pooled_width, card.pooled_2_width, card.latent_channels, card.pixels_per_latent) == (20, 12, 16, 8)
    assert card.scheduler == FlowScheduler(num_train_timesteps=1000, shift=3.0)
    assert (card.name, card.family, card.source, card.t5) == ("sd3", "sd3", "tiny", True)


def test_a_coarser_autoencoder_needs_fewer_positions(changed: Change) -> None:
    changed("vae/config.json", block_out_channels=[8] * 6)
    checkpoint = changed("transformer/config.json", pos_embed_max_size=24)  # 64 pixels each: 1536
    card = sd3.card(checkpoint, "sd3", "a coarse one", None)
    assert card.pixels_per_latent == 32
    assert {recipe.axes["height"].most for recipe in sd3.recipes(checkpoint, card)[-2:]} == {48}


def test_every_engine_of_the_card_has_its_recipe_and_every_text_engine_its_tokenizer(folder: Path) -> None:
    card = sd3.card(opened(folder), "sd3", "a tiny one", None)
    recipes = sd3.recipes(opened(folder), card)
    assert [recipe.spec for recipe in recipes] == list(engines(card))
    tokenizers = [None if recipe.tokenizer is None else recipe.tokenizer.folder for recipe in recipes]
    assert tokenizers == ["tokenizer", "tokenizer_2", "tokenizer_3", None, None, None]


@pytest.mark.parametrize("entry", [None, [None, None], "absent"])
def test_a_checkpoint_without_t5_gives_five_engines(changed: Change, entry: object) -> None:
    checkpoint = changed("model_index.json", text_encoder_3=entry)
    shutil.rmtree(checkpoint.path("text_encoder_3"))
    card = sd3.card(checkpoint, "sd3", "a tiny one", None)
    assert not card.t5
    assert [recipe.component for recipe in sd3.recipes(checkpoint, card)] == [
        "text_encoder",
        "text_encoder_2",
        "vae",
        "transformer",
        "vae",
    ]


@pytest.mark.parametrize(
    "part", ["text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae", "scheduler"]
)
def test_a_missing_part_is_named(changed: Change, part: str) -> None:
    checkpoint = changed("model_index.json")
    shutil.rmtree(checkpoint.path(part))
    with pytest.raises(ExportError, match=rf"/{part}/\w*config.json is missing"):
        sd3.card(checkpoint, "sd3", "", None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dynamic_shifting", True),
        ("invert_sigmas", True),
        ("shift_terminal", 0.1),
        ("use_karras_sigmas", True),
        ("use_exponential_sigmas", True),
        ("use_beta_sigmas", True),
        ("stochastic_sampling", True),
        ("shift", 0),
        ("_class_name", "DDIMScheduler"),
    ],
)
def test_a_schedule_that_is_not_built_is_refused_with_file_and_field(
    changed: Change, field: str, value: object
) -> None:
    with pytest.raises(ExportError, match=rf"scheduler_config.json: .*{field}"):
        sd3.card(changed("scheduler/scheduler_config.json", **{field: value}), "sd3", "", None)


@pytest.mark.parametrize("field", sd3.BUILT)
def test_a_field_that_a_config_leaves_out_has_diffusers_own_default(field: str) -> None:
    assert getattr(FlowMatchEulerDiscreteScheduler().config, field) == sd3.BUILT[field]


@pytest.mark.parametrize(
    ("name", "fields", "wrong"),
    [
        ("transformer", {"in_channels": 4}, "transformer in_channels is 4, must be 16"),
        ("transformer", {"out_channels": 8}, "transformer out_channels is 8, must be 16"),
        ("transformer", {"pooled_projection_dim": 7}, "pooled_projection_dim is 7, must be 32"),
        ("transformer", {"pos_embed_max_size": None}, "no positions for is \\[640, .*1536\\]"),
        ("transformer", {"pos_embed_max_size": 95}, "no positions for is \\[1536\\]"),
        ("transformer", {"patch_size": 5}, "no multiple of 40 pixels"),
        ("transformer", {"joint_attention_dim": 39}, "by is 1, must be 0"),
        ("text_encoder_3", {"d_model": 64}, "text_encoder_3 d_model is 64, must be 48"),
        ("text_encoder", {"max_position_embeddings": 64}, "text_encoder max_position_embeddings is 64"),
        ("text_encoder_2", {"projection_dim": "absent"}, "lacks 'projection_dim'"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(
    changed: Change, name: str, fields: dict[str, object], wrong: str
) -> None:
    with pytest.raises(ExportError, match=wrong):
        sd3.card(changed(f"{name}/config.json", **fields), "sd3", "", None)


def test_another_familys_checkpoint_or_kind_of_prediction_is_refused(folder: Path, changed: Change) -> None:
    with pytest.raises(ExportError, match="StableDiffusionXLPipeline"):
        sd3.card(changed("model_index.json", _class_name="StableDiffusionXLPipeline"), "sd3", "", None)
    with pytest.raises(ExportError, match="--prediction-type epsilon"):
        sd3.card(opened(folder), "sd3", "", "epsilon")


TEXTS = ("", " ", "a red house by the sea", "The RED  sea,\n\tby", "sea " * 300, "日本 🚤 zé!", "</s> <pad> <unk>")


def test_t5s_tokenizer_gives_the_ids_that_the_checkpoints_own_gives_to_diffusers(folder: Path, tmp_path: Path) -> None:
    checkpoint = opened(folder)
    _, _, t5, *_ = sd3.recipes(checkpoint, sd3.card(checkpoint, "sd3", "", None))
    assert t5.tokenizer is not None
    write_tokenizer(t5.tokenizer, checkpoint, t5.component, 256, tmp_path / "tokenizer.json")
    found = TextTokenizer(tmp_path / "tokenizer.json")
    original = T5Tokenizer.from_pretrained(checkpoint.path("tokenizer_3"))
    for text in TEXTS:
        expected = original(text, padding="max_length", max_length=256, truncation=True, add_special_tokens=True)
        (chunk,) = found.chunks(parse(text), 1).chunks
        assert chunk.ids == tuple(expected.input_ids), repr(text)
    assert found.chunks(parse("sea " * 300), 1).cut == ("sea " * 45).strip()  # 255 words and the end token are read
    assert found.chunks(parse("a red house"), 1).cut == ""


@pytest.mark.thorough
@pytest.mark.parametrize("dual", [(), (0, 1)])
def test_a_transformer_of_version_3_5_is_traced_too(folder: Path, tmp_path: Path, dual: tuple[int, ...]) -> None:
    """Normed queries and keys (large), and blocks with a second attention (medium)."""
    checkpoint = opened(folder)
    transformer = sd3.recipes(checkpoint, sd3.card(checkpoint, "sd3", "", None))[4]
    config = {**checkpoint.config("transformer"), "qk_norm": "rms_norm", "dual_attention_layers": dual}
    torch.manual_seed(0)
    component = SD3Transformer2DModel.from_config(config).half().float().eval().requires_grad_(False)
    component.save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text("{}")
    write_weights(component, opened(tmp_path), "transformer", tmp_path / "weights.safetensors")
    module = transformer.wrap(component)
    model = graphs.trace(transformer, module, examples(transformer, transformer.traced, 1))
    graph = graphs.attach_weights(model, "weights.safetensors", stored_tensors(tmp_path / "weights.safetensors"))
    (tmp_path / "model.onnx").write_bytes(graph)
    inputs = examples(transformer, transformer.checked, 2)
    row = parity.compare(transformer, tmp_path / "model.onnx", inputs, parity.reference(transformer, module, inputs))
    assert row.passed
    assert np.isfinite(row.relative)
