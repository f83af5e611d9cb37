"""SDXL's recipe: which checkpoints are a base, a refiner or neither; what its engines give; its decoder's precision."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from checkpoints import SDXL_UNET, SSD_UNET, change_json, vocabulary, write_sdxl
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from export import ExportError, graphs, parity
from export.checkpoint import Checkpoint, open_checkpoint
from export.recipes import EngineRecipe, examples, sdxl
from export.tokenizer import write_tokenizer
from export.weights import load_component, stored_tensors, write_weights
from server.engines import openvino_runtime
from server.families.sdxl_networks import SdxlCard
from server.levels import Scheduler
from server.prompts.weights import parse
from server.tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def base(sdxl_folder: Path) -> Checkpoint:
    return open_checkpoint(str(sdxl_folder), None, ())


@pytest.fixture(scope="module")
def both(base: Checkpoint, refiner_folder: Path) -> Checkpoint:
    return base.join("refiner", open_checkpoint(str(refiner_folder), None, ()))


@pytest.fixture
def copies(both: Checkpoint, tmp_path: Path) -> Checkpoint:
    """Base and refiner, to be damaged."""
    for name, folder in (("base", both.folder), ("refiner", both.joined["refiner"].folder)):
        shutil.copytree(folder, tmp_path / name)
    copy = open_checkpoint(str(tmp_path / "base"), None, ())
    return copy.join("refiner", open_checkpoint(str(tmp_path / "refiner"), None, ()))


def card_of(checkpoint: Checkpoint) -> SdxlCard:
    return sdxl.card(checkpoint, "tiny", "a tiny one", None)


def recipe_of(engine: str, checkpoint: Checkpoint) -> EngineRecipe:
    recipes = sdxl.recipes(checkpoint, card_of(checkpoint))
    return next(recipe for recipe in recipes if recipe.spec.name == f"tiny_{engine}")


def rendered(recipe: EngineRecipe, checkpoint: Checkpoint, folder: Path) -> tuple[torch.nn.Module, Path]:
    """The wrapped module and its exported graph."""
    component = load_component(sdxl.COMPONENTS[recipe.component], checkpoint, recipe.component)
    write_weights(component, checkpoint, recipe.component, folder / "weights.safetensors")
    module = recipe.wrap(component)
    traced = graphs.trace(recipe, module, examples(recipe, recipe.traced, seed=1))
    stored = stored_tensors(folder / "weights.safetensors")
    (folder / "model.onnx").write_bytes(graphs.attach_weights(traced, "weights.safetensors", stored))
    return module, folder / "model.onnx"


def test_the_card_says_what_base_and_refiner_say(both: Checkpoint) -> None:
    assert card_of(both) == SdxlCard(
        name="tiny",
        family="sdxl",
        title="a tiny one",
        source="base + refiner",
        latent_channels=4,
        pixels_per_latent=8,
        scheduler=Scheduler(
            num_train_timesteps=1000,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="epsilon",
            steps_offset=1,
            set_alpha_to_one=False,
            timestep_spacing="leading",
        ),
        inpainting=False,
        safety_checker=False,
        control=True,
        image_side=0,
        image_width=0,
        vision_width=0,
        image_patches=0,
        ip_blocks=(),
        ip_plus=False,
        text_width=16,
        text_2_width=24,
        pooled_width=24,
        text_layers=3,  # of the first; the second has 4
        zeros_for_no_negative=True,
        refiner=True,
        transfer_side=0,
        transfer_lora="",
    )


def test_a_base_alone_has_no_refiner(base: Checkpoint) -> None:
    assert not card_of(base).refiner
    assert [recipe.component for recipe in sdxl.recipes(base, card_of(base))] == [
        "text_encoder",
        "text_encoder_2",
        "vae",
        "unet",
        "vae",
    ]


def test_whether_no_negative_prompt_means_zeros_is_the_checkpoints_word(copies: Checkpoint) -> None:
    change_json(copies.path("model_index.json"), force_zeros_for_empty_prompt=False)
    assert not card_of(copies).zeros_for_no_negative


def test_latent_sides_are_multiples_of_what_each_unet_halves(both: Checkpoint) -> None:
    """The base has three levels, the refiner four."""
    encoder = recipe_of("vae_encoder", both)
    assert {axis.multiple for name, axis in encoder.axes.items() if name != "rows"} == {4 * 8}  # pixels
    assert {axis.most for name, axis in encoder.axes.items() if name != "rows"} == {1536}
    for engine, multiple in (("unet", 4), ("refiner", 8), ("vae_decoder", 4)):
        recipe = recipe_of(engine, both)
        assert {recipe.axes[side].multiple for side in ("height", "width")} == {multiple}
        assert {recipe.axes[side].most for side in ("height", "width")} == {1536 // 8}
        for lengths in (recipe.traced, recipe.checked, recipe.golden):
            assert lengths["height"] % multiple == lengths["width"] % multiple == 0


def _vae_of_16(checkpoint: Checkpoint) -> None:
    blocks = {"block_out_channels": [4, 4, 4, 8, 8]}
    change_json(checkpoint.path("vae/config.json"), **blocks)


def test_an_autoencoder_of_16_pixels_serves_a_base_of_three_levels(copies: Checkpoint) -> None:
    _vae_of_16(copies)
    base = open_checkpoint(str(copies.folder), None, ())
    assert card_of(base).pixels_per_latent == 16
    assert recipe_of("unet", base).axes["width"].most == 1536 // 16


def test_sizes_that_do_not_divide_through_autoencoder_and_unet_are_refused(copies: Checkpoint) -> None:
    _vae_of_16(copies)  # 16 pixels a latent and four levels: multiples of 128
    with pytest.raises(ExportError, match=r"no multiple of 128 pixels is .*832"):
        card_of(copies)


def test_a_refiner_in_the_bases_place_is_told(base: Checkpoint, copies: Checkpoint) -> None:
    """As published: with a second text encoder, without a first."""
    refiner = copies.joined["refiner"]
    shutil.copytree(base.path("text_encoder_2"), refiner.path("text_encoder_2"))
    with pytest.raises(ExportError, match=r"refiner/unet is a refiner's UNet: give it with --refiner"):
        card_of(refiner)


def test_a_base_in_the_refiners_place_is_told(base: Checkpoint) -> None:
    with pytest.raises(ExportError, match=r"base/unet is a base's UNet, not a refiner's: give it with --checkpoint"):
        card_of(base.join("refiner", base))


@pytest.mark.parametrize(
    ("file", "fields", "reason"),
    [
        ("unet/config.json", {"addition_embed_type": None}, "addition_embed_type is None, must be 'text_time'"),
        ("unet/config.json", {"addition_embed_type": "image"}, "addition_embed_type is 'image'"),
        ("unet/config.json", {"in_channels": 8}, r"unet in_channels \(9 where it inpaints\) is 8, must be 4"),
        ("refiner/unet/config.json", {"in_channels": 9}, "unet in_channels is 9, must be 4"),
        ("text_encoder_2/config.json", {"num_hidden_layers": "absent"}, "lacks 'num_hidden_layers'"),
        ("unet/config.json", {"cross_attention_dim": 16}, "cross_attention_dim is 16, must be 40"),
        ("unet/config.json", {"projection_class_embeddings_input_dim": 80}, "conditioned on is 7.0, must be 6"),
        ("unet/config.json", {"projection_class_embeddings_input_dim": "absent"}, "lacks 'projection_class_emb"),
        ("vae/config.json", {"latents_mean": [0.1] * 4}, "latents_mean"),
        ("refiner/unet/config.json", {"cross_attention_dim": 40}, "cross_attention_dim is 40, must be 24"),
        ("refiner/scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "scheduler is Scheduler"),
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, r"model_index.json says it is a StableDiff"),
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "its own family's export"),
        ("refiner/model_index.json", {"force_zeros_for_empty_prompt": True}, "for_empty_prompt is True, must be False"),
        ("refiner/model_index.json", {"_class_name": "FluxPipeline"}, r"refiner/model_index.json says it is a Flux"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused_with_the_field(
    file: str, fields: dict[str, object], reason: str, copies: Checkpoint
) -> None:
    change_json(copies.path(file), **fields)
    with pytest.raises(ExportError, match=reason):
        card_of(copies)


def test_the_text_engines_give_what_diffusers_reads_of_their_encoders(base: Checkpoint, tmp_path: Path) -> None:
    """The state before the last layer or those left out, without the final norm; the second one's projected end token,
    after all layers whatever is left out."""
    words = vocabulary()
    ids = np.full((3, 77), words["<|endoftext|>"], np.int64)
    ids[:, :4] = (words["<|startoftext|>"], words["the</w>"], words["red</w>"], words["sun</w>"])
    ids[1, 3] = words["ing</w>"]
    skip = np.array([0, 2, 1], np.int64)
    for name, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        folder = tmp_path / name
        folder.mkdir()
        recipe = recipe_of(name, base)
        _, model = rendered(recipe, base, folder)
        outputs = [port.name for port in recipe.spec.outputs]
        width = recipe.spec.inputs[-1].shape[-1]
        inputs = {"input_ids": ids, "skip": skip, "vectors": np.zeros((3, 1, width), np.float32)}
        found = openvino_runtime.OpenVINOEngine(model, outputs, "float32").run(inputs)
        with torch.no_grad():
            encoder = kind.from_pretrained(base.path(name), torch_dtype=torch.float32)
            expected = encoder(torch.from_numpy(ids), output_hidden_states=True)
        for row, left_out in enumerate(skip):  # as StableDiffusionXLPipeline does for its clip_skip
            states = expected.hidden_states[-(left_out + 2)][row].numpy()
            np.testing.assert_allclose(found["hidden_states"][row], states, atol=1e-5)
            assert np.abs(found["hidden_states"][row] - expected.last_hidden_state[row].numpy()).max() > 0.01
        if name == "text_encoder_2":
            np.testing.assert_allclose(found["pooled"], expected.text_embeds.numpy(), atol=1e-5)


def test_a_fault_in_one_of_two_outputs_is_a_fault_in_either_runtime(
    base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("text_encoder_2", base)
    module, model = rendered(recipe, base, tmp_path)
    inputs = examples(recipe, recipe.checked, seed=2)
    expected = parity.reference(recipe, module, inputs)
    assert expected.keys() == {"hidden_states", "pooled"}
    for large, runtime in ((parity._LARGE, "relative"), (0, "relative, in ONNX Runtime")):
        monkeypatch.setattr(parity, "_LARGE", large)
        right = parity.compare(recipe, model, inputs, expected)
        assert right.passed
        assert right.allowed.endswith(runtime)
        for name in expected:
            row = parity.compare(recipe, model, inputs, expected | {name: expected[name] * 1.01})
            assert not row.passed
            assert row.relative == pytest.approx(0.01, rel=0.1)


def test_each_text_engine_has_its_own_tokenizer_with_its_own_padding(base: Checkpoint, tmp_path: Path) -> None:
    words = vocabulary()
    for name, pad in (("text_encoder", words["<|endoftext|>"]), ("text_encoder_2", words["!"])):
        recipe = recipe_of(name, base)
        assert recipe.tokenizer is not None
        write_tokenizer(recipe.tokenizer, base, name, 77, tmp_path / f"{name}.json")
        (chunk,) = TextTokenizer(tmp_path / f"{name}.json").chunks(parse("the sun"), 1).chunks
        start, end = words["<|startoftext|>"], words["<|endoftext|>"]
        assert chunk.ids == (start, words["the</w>"], words["sun</w>"], end, *[pad] * 73)


def test_a_unet_of_ssds_blocks_is_exported_by_the_same_recipe(tmp_path: Path) -> None:
    """No attention in the middle and fewer layers here and there: nothing but its config says so."""
    write_sdxl(tmp_path / "ssd", SSD_UNET)
    checkpoint = open_checkpoint(str(tmp_path / "ssd"), None, ())
    recipe = recipe_of("unet", checkpoint)
    module, model = rendered(recipe, checkpoint, tmp_path)
    assert "mid_block.attentions.0.norm.weight" not in module.get_submodule("component").state_dict()
    inputs = examples(recipe, {"rows": 1, "height": 8, "width": 20, "tokens": 231}, seed=3)
    row = parity.compare(recipe, model, inputs, parity.reference(recipe, module, inputs))
    assert row.passed, row


@pytest.mark.parametrize("with_refiner", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_an_inpainting_unet_is_told_by_its_channels_and_its_refiner_has_none(
    tmp_path: Path, refiner_folder: Path, *, with_refiner: bool
) -> None:
    write_sdxl(tmp_path / "base", {**SDXL_UNET, "in_channels": 9})
    change_json(tmp_path / "base/model_index.json", _class_name="StableDiffusionXLInpaintPipeline")
    checkpoint = open_checkpoint(str(tmp_path / "base"), None, ())
    if with_refiner:
        checkpoint = checkpoint.join("refiner", open_checkpoint(str(refiner_folder), None, ()))
    assert card_of(checkpoint).inpainting
    unet = recipe_of("unet", checkpoint)
    assert (unet.spec.inputs[0].shape[1], unet.spec.outputs[0].shape[1]) == (9, 4)
    if with_refiner:
        assert recipe_of("refiner", checkpoint).spec.inputs[0].shape[1] == 4
        return
    module, model = rendered(unet, checkpoint, tmp_path)
    inputs = examples(unet, {"rows": 1, "height": 8, "width": 20, "tokens": 77}, seed=3)
    expected = parity.reference(unet, module, inputs)
    assert parity.compare(unet, model, inputs, expected).passed
    for channel in (4, 8):  # the mask, and the last of the masked picture
        sample = inputs["sample"].copy()
        sample[:, channel] += 1
        assert not parity.compare(unet, model, inputs | {"sample": sample}, expected).passed


def _loud(folder: Path) -> None:
    """Weights that half precision holds and activations that it does not: as SDXL's published autoencoder."""
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if name.endswith("coder.mid_block.resnets.0.conv2.weight"):
            tensors[name] = (tensors[name].float() * 2e5).half()  # up to 25,000
    save_file(tensors, file)


def test_an_autoencoder_whose_activations_leave_half_precision_computes_rightly(
    copies: Checkpoint, tmp_path: Path
) -> None:
    """Nor does its encoder, whose activations leave it as well."""
    _loud(copies.folder)
    latents = torch.from_numpy(100 * np.random.RandomState(4).standard_normal((1, 4, 16, 8)).astype(np.float32))
    half = AutoencoderKL.from_pretrained(copies.path("vae"), torch_dtype=torch.float16)
    with torch.no_grad():
        assert not bool(torch.isfinite(half.decode(latents.half()).sample).all()), "it does not leave half precision"
        picture = torch.from_numpy(np.random.RandomState(5).uniform(-1, 1, (1, 3, 64, 32))).half()
        assert not bool(torch.isfinite(half.encode(picture).latent_dist.mean).all()), "it does not leave half precision"
    for name in ("vae_decoder", "vae_encoder"):
        recipe = recipe_of(name, copies)
        module, model = rendered(recipe, copies, tmp_path)
        inputs = {"latents": latents.numpy()} if name == "vae_decoder" else examples(recipe, recipe.checked, seed=3)
        row = parity.compare(recipe, model, inputs, parity.reference(recipe, module, inputs))
        assert row.passed, row
        # Half precision is a way to store weights: nothing is computed in it, whatever the engine's config says.
        for node in onnx.load(model, load_external_data=False).graph.node:
            casts = [attribute.i for attribute in node.attribute if node.op_type == "Cast" and attribute.name == "to"]
            assert onnx.TensorProto.FLOAT16 not in casts
    assert set(openvino_runtime.PRECISIONS) == {"float32", "bfloat16"}
