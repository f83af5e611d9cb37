"""The exported graphs compute what torch computes, and hold no weights."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from safetensors.torch import load_file
from transformers import CLIPTextModel

from export import parity
from export.checkpoint import Checkpoint
from export.recipes import EngineRecipe, examples, sd15
from export.weights import load_component, stored_tensors
from server.engines.openvino_runtime import OpenVINOEngine
from server.engines.port import Array

ENGINES = ("tiny_text_encoder", "tiny_vae_encoder", "tiny_unet", "tiny_vae_decoder")
# None of these lengths was traced; rows of 1 and a token axis of three chunks are what tracing most easily gets wrong.
SIZES = (
    {"rows": 1, "height": 8, "width": 16, "tokens": 77, "picture_height": 64, "picture_width": 128, "vectors": 3},
    {"rows": 1, "height": 16, "width": 40, "tokens": 231, "picture_height": 128, "picture_width": 320, "vectors": 5},
    {"rows": 5, "height": 8, "width": 16, "tokens": 154, "picture_height": 64, "picture_width": 128, "vectors": 3},
)


def recipe_of(engine: str, checkpoint: Checkpoint) -> EngineRecipe:
    card = sd15.card(checkpoint, "tiny", "", None)
    return next(recipe for recipe in sd15.recipes(checkpoint, card) if recipe.spec.name == engine)


def module_of(recipe: EngineRecipe, checkpoint: Checkpoint) -> torch.nn.Module:
    return recipe.wrap(load_component(sd15.COMPONENTS[recipe.component], checkpoint, recipe.component))


def model_of(engine: str, rendered: Path) -> Path:
    return rendered / engine / "1" / "model.onnx"


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_openvino_and_onnx_runtime_give_what_torch_gives_at_sizes_that_were_not_traced(
    engine: str, size: dict[str, int], checkpoint: Checkpoint, rendered: Path
) -> None:
    recipe, model = recipe_of(engine, checkpoint), model_of(engine, rendered)
    inputs = examples(recipe, size, seed=3)
    expected = parity.reference(recipe, module_of(recipe, checkpoint), inputs)
    row = parity.compare(recipe, model, inputs, expected)
    assert row.passed, row
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    for port, found in zip(recipe.spec.outputs, session.run(None, inputs), strict=True):
        gap = np.abs(found.astype(np.float64) - expected[port.name])
        assert gap.max() <= (1 if port.dtype == "uint8" else parity.TOLERANCE * np.abs(expected[port.name]).max())


@pytest.mark.parametrize("engine", ENGINES)
def test_every_weight_is_an_initializer_of_its_own_name_that_points_at_its_half_precision_bytes(
    engine: str, checkpoint: Checkpoint, rendered: Path
) -> None:
    graph = onnx.load(model_of(engine, rendered), load_external_data=False).graph
    stored = stored_tensors(model_of(engine, rendered).with_name("weights.safetensors"))
    state = module_of(recipe_of(engine, checkpoint), checkpoint).get_submodule("component").state_dict()
    external = {tensor.name: tensor for tensor in graph.initializer if tensor.external_data}
    for name, tensor in external.items():
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert place["location"] == "weights.safetensors"
        assert (int(place["offset"]), int(place["length"])) == (stored[name].offset, stored[name].length)
        assert (tensor.data_type, tuple(tensor.dims)) == (onnx.TensorProto.FLOAT16, tuple(state[name].shape))
    halves = {"tiny_vae_decoder": ("encoder.", "quant_conv."), "tiny_vae_encoder": ("decoder.", "post_quant_conv.")}
    unused = {name for name in state if name.startswith(halves.get(engine, "none"))}
    assert external.keys() == state.keys() - unused
    assert max(tensor.ByteSize() for tensor in graph.initializer) < 8000, "a weight was folded into the graph"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_graphs_are_small_valid_and_use_only_plain_operators(engine: str, rendered: Path) -> None:
    path = model_of(engine, rendered)
    onnx.checker.check_model(path)
    model = onnx.load(path, load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    operators = {node.op_type for node in model.graph.node}
    assert not {name for name in operators if "Sequence" in name or name in ("CastLike", "If", "Loop", "Constant")}
    assert path.stat().st_size < 500_000


def test_the_axes_of_the_graphs_carry_the_names_of_the_spec(checkpoint: Checkpoint, rendered: Path) -> None:
    for engine in ENGINES:
        spec = recipe_of(engine, checkpoint).spec
        graph = onnx.load(model_of(engine, rendered), load_external_data=False).graph
        for ports, values in ((spec.inputs, graph.input), (spec.outputs, graph.output)):
            found = [
                (value.name, tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim))
                for value in values
            ]
            assert found == [(port.name, port.shape) for port in ports]


def test_other_weights_under_the_same_graph_give_the_other_model(
    checkpoint: Checkpoint, rendered: Path, tmp_path: Path
) -> None:
    """What a LoRA or a custom checkpoint stands on: no weight has left a trace in the graph."""
    recipe = recipe_of("tiny_unet", checkpoint)
    module = module_of(recipe, checkpoint)
    original = model_of("tiny_unet", rendered)
    shutil.copy(original, tmp_path / "model.onnx")
    content = original.with_name("weights.safetensors").read_bytes()
    start = min(tensor.offset for tensor in stored_tensors(original.with_name("weights.safetensors")).values())
    values = np.frombuffer(content[start:], np.float16)
    noise = 0.1 * np.random.RandomState(1).standard_normal(values.shape)
    (tmp_path / "weights.safetensors").write_bytes(content[:start] + (values + noise).astype(np.float16).tobytes())
    weights = load_file(tmp_path / "weights.safetensors")
    inputs = examples(recipe, SIZES[0], seed=3)
    before = parity.reference(recipe, module, inputs)
    module.get_submodule("component").load_state_dict(weights)
    after = parity.reference(recipe, module, inputs)
    assert parity.compare(recipe, tmp_path / "model.onnx", inputs, after).passed
    assert not parity.compare(recipe, tmp_path / "model.onnx", inputs, before).passed


def test_a_later_token_does_not_change_the_states_of_earlier_ones(rendered: Path) -> None:
    engine = OpenVINOEngine(model_of("tiny_text_encoder", rendered), ["hidden_states"], "float32")
    ids = np.arange(77, dtype=np.int64)[None]
    other = ids.copy()
    other[0, 40] = 300
    unread = {"skip": np.zeros(1, np.int64), "vectors": np.zeros((1, 1, 16), np.float32)}
    one, two = (engine.run({"input_ids": tokens, **unread})["hidden_states"] for tokens in (ids, other))
    np.testing.assert_array_equal(one[:, :40], two[:, :40])
    assert np.abs(one[:, 40:] - two[:, 40:]).max() > 0.01


def test_each_row_leaves_out_its_own_number_of_layers_and_is_normed_as_diffusers_norms_it(
    checkpoint_folder: Path, rendered: Path
) -> None:
    ids = np.random.RandomState(6).randint(0, 400, (4, 77))
    skip = np.array([2, 0, 1, 0], np.int64)
    engine = OpenVINOEngine(model_of("tiny_text_encoder", rendered), ["hidden_states"], "float32")
    vectors = np.zeros((4, 1, 16), np.float32)
    found = engine.run({"input_ids": ids, "skip": skip, "vectors": vectors})["hidden_states"]
    encoder = CLIPTextModel.from_pretrained(checkpoint_folder / "text_encoder", torch_dtype=torch.float32)
    with torch.no_grad():
        result = encoder(torch.from_numpy(ids), output_hidden_states=True)
        for row, left_out in enumerate(skip):  # as StableDiffusionPipeline does for its clip_skip
            expected = encoder.final_layer_norm(result.hidden_states[-(left_out + 1)])[row].numpy()
            np.testing.assert_allclose(found[row], expected, atol=1e-5)
    np.testing.assert_allclose(found[1], result.last_hidden_state[1].numpy(), atol=1e-5)
    assert np.abs(found[0] - result.last_hidden_state[0].numpy()).max() > 0.01


def test_an_id_below_0_reads_its_rows_vector_as_a_longer_table_would(checkpoint_folder: Path, rendered: Path) -> None:
    """How diffusers loads textual inversions: as further rows of the token table."""
    random = np.random.RandomState(7)
    ids = random.randint(0, 400, (2, 77))
    ids[0, [5, 6, 9]], ids[1, [5, 40]] = (-1, -3, -1), (-2, -1)
    vectors = random.standard_normal((2, 3, 16)).astype(np.float32)
    engine = OpenVINOEngine(model_of("tiny_text_encoder", rendered), ["hidden_states"], "float32")
    found = engine.run({"input_ids": ids, "skip": np.zeros(2, np.int64), "vectors": vectors})["hidden_states"]
    encoder = CLIPTextModel.from_pretrained(checkpoint_folder / "text_encoder", torch_dtype=torch.float32)
    words = encoder.config.vocab_size
    encoder.resize_token_embeddings(words + 6, mean_resizing=False)
    with torch.no_grad():
        encoder.get_input_embeddings().weight[words:] = torch.from_numpy(vectors.reshape(6, 16))
        longer = np.where(ids < 0, words - 1 - ids + np.array([[0], [3]]), ids)
        expected = encoder(torch.from_numpy(longer)).last_hidden_state.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_decoder_gives_the_picture_that_diffusers_gives(checkpoint_folder: Path, rendered: Path) -> None:
    vae = AutoencoderKL.from_pretrained(checkpoint_folder / "vae", torch_dtype=torch.float32)
    latents: Array = np.random.RandomState(5).standard_normal((1, 4, 16, 24)).astype(np.float32)
    with torch.no_grad():  # as StableDiffusionPipeline does it, and the shift as the later pipelines do
        decoded = vae.decode(torch.from_numpy(latents) / vae.config.scaling_factor + vae.config.shift_factor).sample
    (picture,) = VaeImageProcessor(vae_scale_factor=8).postprocess(decoded, output_type="pil")
    expected = np.asarray(picture).astype(int)
    engine = OpenVINOEngine(model_of("tiny_vae_decoder", rendered), ["pixels"], "float32")
    gap = np.abs(engine.run({"latents": latents})["pixels"][0].astype(int) - expected)
    assert gap.shape == (128, 192, 3)
    assert gap.max() <= 1
    assert (gap > 0).mean() < 0.001  # only where rounding had to decide
