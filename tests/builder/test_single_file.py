"""Single files against diffusers' own conversion of them, and the other layouts a checkpoint may have."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builder.files import REPOSITORY, ROOT, engine, saved, some_random
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.numpy import load_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from server.adapters.weights import COMPONENTS
from server.builder.reading import Tensors
from server.builder.shapes import Misfit, plain
from server.builder.single_file import Found, find, original_unet
from server.engines.port import Array

ALL = list(dict.fromkeys(COMPONENTS.values()))
ENGINE = {"unet": "unet", "vae": "vae_decoder", "text_encoder": "text_encoder", "text_encoder_2": "text_encoder_2"}
File = dict[str, Array]


def own(card: str, component: str) -> File:
    """An engine's weights by plain name."""
    tensors = load_file(REPOSITORY / f"{card}_{ENGINE[component]}" / "1" / "weights.safetensors")
    return {plain(name): tensor for name, tensor in tensors.items()}


def config(card: str, component: str) -> dict[str, Any]:
    text = ROOT.joinpath("demo", "checkpoints", card, component, "config.json").read_text()
    return dict(json.loads(text))


def stability_vae(name: str, levels: int) -> str:
    """Written apart from the code under test, in steps of another kind."""
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    if match := re.fullmatch(r"mid_block\.attentions\.0\.(.+)\.(weight|bias)", rest):
        part = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}[match[1]]
        return f"{side}.mid.attn_1.{part}.{match[2]}"
    if match := re.fullmatch(r"mid_block\.resnets\.(\d)\.(.+)", rest):
        return f"{side}.mid.block_{int(match[1]) + 1}.{match[2]}"
    if match := re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", rest):
        level = int(match[2]) if match[1] == "down" else levels - 1 - int(match[2])
        if match[3] == "resnets":
            inner = match[5].replace("conv_shortcut", "nin_shortcut")
            return f"{side}.{match[1]}.{level}.block.{match[4]}.{inner}"
        return f"{side}.{match[1]}.{level}.{match[1]}sample.{match[5]}"
    return f"{side}.{rest.replace('conv_norm_out', 'norm_out')}"


def as_convolutions(tensors: File) -> File:
    """Stability's autoencoder attends by 1x1 convolutions."""
    return {
        name: tensor[:, :, None, None] if "attn_1" in name and tensor.ndim == 2 else tensor
        for name, tensor in tensors.items()
    }


def open_clip(tensors: File) -> File:
    made: File = {
        "positional_embedding": tensors["embeddings.position_embedding.weight"],
        "token_embedding.weight": tensors["embeddings.token_embedding.weight"],
        "text_projection": tensors["text_projection.weight"].T,
        "ln_final.weight": tensors["final_layer_norm.weight"],
        "ln_final.bias": tensors["final_layer_norm.bias"],
        "logit_scale": np.array(4.6, np.float16),
    }
    layers = {int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layers.")}
    inner = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    inner |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for layer in layers:
        block, before = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for end in ("weight", "bias"):
            for there, here in inner.items():
                made[f"{block}.{there}.{end}"] = tensors[f"{before}.{here}.{end}"]
            qkv = [tensors[f"{before}.self_attn.{part}_proj.{end}"] for part in "qkv"]
            made[f"{block}.attn.in_proj_{end}"] = np.concatenate(qkv)
    return made


def single_file(card: str) -> File:
    unet, vae, text = own(card, "unet"), own(card, "vae"), own(card, "text_encoder")
    names = original_unet({name: tensor.shape for name, tensor in unet.items()})
    levels = len(config(card, "vae")["up_block_types"])
    made: File = {f"model.diffusion_model.{names[name]}": tensor for name, tensor in unet.items()}
    original = as_convolutions({stability_vae(name, levels): tensor for name, tensor in vae.items()})
    made |= {f"first_stage_model.{name}": tensor for name, tensor in original.items()}
    clip = "cond_stage_model.transformer." if card == "sd15" else "conditioner.embedders.0.transformer."
    made |= {f"{clip}text_model.{name}": tensor for name, tensor in text.items()}
    made[f"{clip}text_model.embeddings.position_ids"] = np.arange(77)
    if card != "sd15":
        second = open_clip(own(card, "text_encoder_2"))
        made |= {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in second.items()}
    made["alphas_cumprod"] = np.ones(1000, np.float32)
    made["model_ema.decay"] = np.ones(1, np.float32)
    return made


def found_in(path: Path, card: str, components: list[str] = ALL) -> tuple[Found, dict[str, File]]:
    with Tensors(path) as tensors:
        found = find(tensors, engine(card), components)
        shapes = engine(card).components
        values = {
            component: {
                name: piece.of(tensors.float16(piece.tensor)).reshape(shapes[component][name])
                for name, piece in pieces.items()
            }
            for component, pieces in found.items()
        }
    return found, values


def expect_all(values: dict[str, File], card: str, components: list[str]) -> None:
    assert sorted(values) == sorted(components)
    for component in components:
        wanted = own(card, component)
        assert values[component].keys() == wanted.keys()
        assert all(np.array_equal(values[component][name], wanted[name]) for name in wanted), component


@pytest.mark.parametrize("card", ["sd15", "sdxl"])
def test_a_single_file_gives_every_tensor_as_diffusers_reads_it(tmp_path: Path, card: str) -> None:
    file = single_file(card)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(tensor)) for name, tensor in file.items()}
    unet = convert_ldm_unet_checkpoint(dict(tensors), config(card, "unet"))
    vae = convert_ldm_vae_checkpoint(dict(tensors), config(card, "vae"))

    _, values = found_in(saved(file, tmp_path / "f.safetensors"), card)

    expect_all(values, card, [name for name in ALL if name in engine(card).components])
    for component, converted in (("unet", unet), ("vae", vae)):
        assert converted.keys() == values[component].keys()
        for name, tensor in converted.items():
            assert np.array_equal(values[component][name], tensor.reshape(values[component][name].shape).numpy()), name


def test_open_clip_s_joined_projections_come_apart_as_in_diffusers(tmp_path: Path) -> None:
    prefix = "conditioner.embedders.1.model."
    file = {name: tensor for name, tensor in single_file("sdxl").items() if name.startswith(prefix)}
    empty = CLIPTextModelWithProjection(CLIPTextConfig(**config("sdxl", "text_encoder_2")))
    tensors = {name: torch.from_numpy(np.ascontiguousarray(tensor)) for name, tensor in file.items()}
    converted = convert_open_clip_checkpoint(empty, tensors, prefix=prefix)

    _, values = found_in(saved(file, tmp_path / "f.safetensors"), "sdxl")

    expect_all(values, "sdxl", ["text_encoder_2"])
    for name, tensor in converted.items():
        if plain(name) in values["text_encoder_2"]:
            assert np.array_equal(values["text_encoder_2"][plain(name)], tensor.numpy()), name


@pytest.mark.parametrize("card", ["sd15", "sdxl", "ssd"])
def test_diffusers_names_under_each_network_s_prefix_are_found(tmp_path: Path, card: str) -> None:
    components = [name for name in ALL if name in engine(card).components]
    file = {f"{component}.{name}": tensor for component in components for name, tensor in own(card, component).items()}

    _, values = found_in(saved(file, tmp_path / "f.safetensors"), card)

    expect_all(values, card, components)


@pytest.mark.parametrize("prefix", ["", "unet.", "model.diffusion_model."])
@pytest.mark.parametrize("original", [True, False])
def test_a_unet_may_come_alone(tmp_path: Path, prefix: str, original: bool) -> None:
    unet = own("sdxl", "unet")
    names = original_unet({name: tensor.shape for name, tensor in unet.items()})
    if original == (prefix == "unet.") and prefix:
        pytest.skip("nobody writes these names under this prefix")
    file = {prefix + (names[name] if original else name): tensor for name, tensor in unet.items()}

    _, values = found_in(saved(file, tmp_path / "f.safetensors"), "sdxl")

    expect_all(values, "sdxl", ["unet"])


@pytest.mark.parametrize("card", ["sd15", "sdxl"])
@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
@pytest.mark.parametrize("layout", ["diffusers", "diffusers of old", "Stability's"])
def test_a_vae_may_come_alone(tmp_path: Path, card: str, prefix: str, layout: str) -> None:
    vae, levels = own(card, "vae"), len(config(card, "vae")["up_block_types"])
    if layout == "Stability's":
        file = as_convolutions({stability_vae(name, levels): tensor for name, tensor in vae.items()})
    else:
        old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
        file = dict(vae)
        for new, before in old.items() if layout == "diffusers of old" else ():
            file = {name.replace(new, before): tensor for name, tensor in file.items()}
    if (layout == "Stability's") == (prefix == "vae.") and prefix:
        pytest.skip("nobody writes these names under this prefix")

    _, values = found_in(saved({prefix + name: t for name, t in file.items()}, tmp_path / "f"), card, ["vae"])

    expect_all(values, card, ["vae"])


def test_a_linear_projection_fits_where_the_engine_has_a_convolution(tmp_path: Path) -> None:
    unet = own("sd15", "unet")
    file = {name: t[:, :, 0, 0] if t.ndim == 4 and t.shape[2:] == (1, 1) else t for name, t in unet.items()}
    assert any(file[name].ndim != unet[name].ndim for name in unet)

    _, values = found_in(saved(file, tmp_path / "f.safetensors"), "sd15")

    expect_all(values, "sd15", ["unet"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: file.pop("conv_in.weight"), "of its unet the file lacks conv_in.weight"),
        (
            lambda file: file.update({"conv_in.weight": some_random(1, 16, 9, 3, 3)}),
            "of [16, 4, 3, 3], the file of [16, 9",
        ),
        (lambda file: file.update({"down_blocks.7.x": some_random(1, 3)}), "it has no down_blocks.7.x, which the file"),
        (lambda file: file.update({"conv_in.bias": np.ones(16, np.int32)}), "conv_in.bias is I32 in the file"),
    ],
)
def test_a_network_that_is_not_whole_or_not_alike_is_refused(tmp_path: Path, change: Any, reason: str) -> None:
    file = own("sd15", "unet")
    change(file)
    with pytest.raises(Misfit, match=re.escape(reason)):
        found_in(saved(file, tmp_path / "f.safetensors"), "sd15")
