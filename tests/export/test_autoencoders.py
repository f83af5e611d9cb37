"""An autoencoder's two engines have equal weights, and the encoder gives what diffusers' pipelines make of a
picture. Inpainting UNets, which read such latents."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from checkpoints import write_sd15
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from safetensors.torch import load_file, save_file

from export import ExportError, graphs, parity
from export.checkpoint import Checkpoint, open_checkpoint
from export.recipes import EngineRecipe, examples, sd3, sd15, sdxl
from export.weights import check_weights, load_component, stored_tensors, write_weights
from server.engines.openvino_runtime import OpenVINOEngine
from server.engines.port import Array

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


def sd15_recipe(engine: str, checkpoint: Checkpoint) -> EngineRecipe:
    recipes = sd15.recipes(checkpoint, sd15.card(checkpoint, "tiny", "", None))
    return next(recipe for recipe in recipes if recipe.spec.name == f"tiny_{engine}")


def rendered_engine(recipe: EngineRecipe, component: torch.nn.Module, checkpoint: Checkpoint, folder: Path) -> Path:
    """Its graph, beside its weights."""
    write_weights(component, checkpoint, recipe.component, folder / "weights.safetensors")
    model = graphs.trace(recipe, recipe.wrap(component), examples(recipe, recipe.traced, seed=1))
    stored = stored_tensors(folder / "weights.safetensors")
    (folder / "model.onnx").write_bytes(graphs.attach_weights(model, "weights.safetensors", stored))
    return folder / "model.onnx"


@pytest.fixture(scope="module", params=["sdxl", "sd3"])
def encoder(
    request: pytest.FixtureRequest, sdxl_folder: Path, sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[OpenVINOEngine, AutoencoderKL]:
    """An exported encoder, and diffusers' own over the same checkpoint: SDXL's has a quant_conv and no shift, SD3's a
    shift and no quant_conv."""
    if request.param == "sdxl":
        checkpoint = open_checkpoint(str(sdxl_folder), None, ())
        recipes = sdxl.recipes(checkpoint, sdxl.card(checkpoint, "tiny", "", None))
    else:
        checkpoint = open_checkpoint(str(sd3_folder), None, ())
        recipes = sd3.recipes(checkpoint, sd3.card(checkpoint, "tiny", "", None))
    recipe = next(recipe for recipe in recipes if recipe.spec.name == "tiny_vae_encoder")
    component = load_component(AutoencoderKL, checkpoint, "vae")
    model = rendered_engine(recipe, component, checkpoint, tmp_path_factory.mktemp("encoder"))
    vae = AutoencoderKL.from_pretrained(checkpoint.path("vae"), torch_dtype=torch.float32)
    assert (vae.quant_conv is None) == (request.param == "sd3")
    assert (vae.config.shift_factor is None) == (request.param == "sdxl")
    return OpenVINOEngine(model, ["mean", "std"], "float32"), vae


def picture(seed: int) -> Array:
    """Height width 3."""
    small = np.random.RandomState(seed).randint(0, 256, (4, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((192, 128), Image.Resampling.BICUBIC))


def test_the_encoder_gives_the_distribution_that_diffusers_draws_from(
    encoder: tuple[OpenVINOEngine, AutoencoderKL],
) -> None:
    engine, vae = encoder
    pixels = picture(1)
    found = engine.run({"pixels": pixels[None], "visible": np.ones((1, 128, 192), np.uint8)})
    with torch.no_grad():  # as the image to image pipelines do
        given = VaeImageProcessor(vae_scale_factor=8).preprocess(Image.fromarray(pixels))
        distribution = vae.encode(given).latent_dist
    shift = 0.0 if vae.config.shift_factor is None else vae.config.shift_factor
    expected = (distribution.mean - shift) * vae.config.scaling_factor
    for name, tensor in (("mean", expected), ("std", distribution.std * vae.config.scaling_factor)):
        assert found[name].shape == tensor.shape
        assert np.abs(found[name] - tensor.numpy()).max() <= parity.TOLERANCE * float(tensor.abs().max())


def test_what_is_not_visible_reads_as_the_masked_picture_of_diffusers(
    encoder: tuple[OpenVINOEngine, AutoencoderKL],
) -> None:
    engine, vae = encoder
    mask = np.zeros((128, 192), bool)  # true: to be painted
    mask[30:70, 50:101] = True
    other = picture(1).copy()
    other[mask] = picture(2)[mask]
    found, again = (
        engine.run({"pixels": pixels[None], "visible": (~mask).astype(np.uint8)[None]})
        for pixels in (picture(1), other)
    )
    for name in ("mean", "std"):
        np.testing.assert_array_equal(found[name], again[name])
    with torch.no_grad():  # as the inpainting pipelines do
        given = VaeImageProcessor(vae_scale_factor=8).preprocess(Image.fromarray(picture(1)))
        masked = given * (torch.from_numpy(mask).float() < 0.5)
        mean = vae.encode(masked).latent_dist.mean
        plain = vae.encode(given).latent_dist.mean
    shift = 0.0 if vae.config.shift_factor is None else vae.config.shift_factor
    expected = ((mean - shift) * vae.config.scaling_factor).numpy()
    assert np.abs(found["mean"] - expected).max() <= parity.TOLERANCE * np.abs(expected).max()
    assert float((mean - plain).abs().max()) > 0.01


def test_a_deviation_beyond_what_diffusers_allows_is_cut_as_there(
    rendered: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The logarithm of the variance: -30 to 20."""
    shutil.copytree(rendered / "tiny_vae_encoder" / "1", tmp_path / "1")
    tensors = load_file(tmp_path / "1" / "weights.safetensors")
    tensors["quant_conv.bias"] = torch.tensor([0, 0, 0, 0, 1000, -1000, 0, 0]).half()
    save_file(tensors, tmp_path / "1" / "weights.safetensors", {"format": "pt"})
    assert stored_tensors(tmp_path / "1" / "weights.safetensors") == stored_tensors(checkpoint.path(WEIGHTS))
    recipe = sd15_recipe("vae_encoder", checkpoint)
    engine = OpenVINOEngine(tmp_path / "1" / "model.onnx", ["std"], "float32")
    found = engine.run(examples(recipe, recipe.golden, seed=1))["std"]
    scale = checkpoint.config("vae")["scaling_factor"]
    np.testing.assert_allclose(found[0, 0], np.exp(10) * scale, rtol=1e-5)
    np.testing.assert_allclose(found[0, 1], np.exp(-15) * scale, rtol=1e-5)
    assert found[0, 2].std() > 0


def test_a_fixed_deviation_is_compared_but_an_engine_that_is_the_same_everywhere_is_not(
    rendered: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SD3's default autoencoder was trained with a fixed one."""
    recipe = sd15_recipe("vae_encoder", checkpoint)
    inputs = examples(recipe, recipe.golden, seed=1)
    varied = np.random.RandomState(2).standard_normal((1, 4, 16, 8)).astype(np.float32)
    same = np.full_like(varied, 0.02)
    for mean, std, passed in ((varied, same, True), (same, same, False), (varied, 0 * same, False)):
        tensors = {"mean": mean, "std": std}
        monkeypatch.setattr(parity, "_openvino", lambda *_, tensors=tensors: tensors)
        model = rendered / "tiny_vae_encoder" / "1" / "model.onnx"
        assert parity.compare(recipe, model, inputs, tensors).passed == passed


def test_both_engines_have_the_checkpoints_own_bytes_as_weights(rendered: Path, checkpoint: Checkpoint) -> None:
    """So git, for one, keeps them once. On disk they are two files: a hard link would not load in onnx."""
    for half in ("encoder", "decoder"):
        weights = rendered / f"tiny_vae_{half}" / "1" / "weights.safetensors"
        assert weights.read_bytes() == checkpoint.path(WEIGHTS).read_bytes()
        onnx.load(weights.with_name("model.onnx"))


def test_an_autoencoder_whose_file_lacks_the_encoder_is_told(changed: Callable[..., Checkpoint]) -> None:
    """As files for generation alone do."""
    checkpoint = changed()
    file = checkpoint.path(WEIGHTS)
    save_file({name: tensor for name, tensor in load_file(file).items() if not name.startswith("encoder.")}, file)
    with pytest.raises(ExportError, match=r"does not fit .*config.json: missing encoder\."):
        load_component(AutoencoderKL, checkpoint, "vae")


def test_a_value_that_is_none_in_the_encoder_is_told_with_its_name(changed: Callable[..., Checkpoint]) -> None:
    checkpoint = changed()
    file = checkpoint.path(WEIGHTS)
    tensors = load_file(file)
    tensors["encoder.conv_in.weight"][0, 0, 0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(ExportError, match=r"holds NaN or infinity in encoder\.conv_in\.weight"):
        check_weights(checkpoint, "vae")


def test_an_inpainting_unet_of_sd15_is_exported_with_mask_and_masked_picture(tmp_path: Path) -> None:
    write_sd15(tmp_path / "tiny", in_channels=9)
    checkpoint = open_checkpoint(str(tmp_path / "tiny"), None, ())
    card = sd15.card(checkpoint, "tiny", "", None)
    assert card.inpainting
    assert card.latent_channels == 4
    recipe = sd15_recipe("unet", checkpoint)
    assert (recipe.spec.inputs[0].shape[1], recipe.spec.outputs[0].shape[1]) == (9, 4)
    component = load_component(sd15.COMPONENTS["unet"], checkpoint, "unet")
    model = rendered_engine(recipe, component, checkpoint, tmp_path)
    inputs = examples(recipe, recipe.checked, seed=3)
    expected = parity.reference(recipe, recipe.wrap(component), inputs)
    assert parity.compare(recipe, model, inputs, expected).passed
    for channel in (4, 8):  # the mask, and the last of the masked picture
        sample = inputs["sample"].copy()
        sample[:, channel] += 1
        assert not parity.compare(recipe, model, inputs | {"sample": sample}, expected).passed


def test_nine_channels_in_the_config_alone_are_told(changed: Callable[..., Checkpoint]) -> None:
    checkpoint = changed("unet/config.json", in_channels=9)
    with pytest.raises(ExportError, match=r"of another shape .*conv_in\.weight"):
        load_component(sd15.COMPONENTS["unet"], checkpoint, "unet")
