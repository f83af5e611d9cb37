"""What an uploaded file is, and which engines it fits."""

import re
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builder.files import REPOSITORY, engine, saved, shapes, some_random
from safetensors.numpy import load_file

from server.assets.asset import AssetType, BadAsset, Facts
from server.builder.inspection import Shapes, inspect
from server.builder.shapes import EngineShapes
from server.engines.port import Array

Q = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
DEEP = "down_blocks.2.attentions.0.transformer_blocks.1.attn2.to_k"  # SSD-1B has fewer of them
T = "encoder.layers.0.self_attn.q_proj"


def pair(card: str, component: str, module: str, prefix: str) -> dict[str, Array]:
    out, into = engine(card).components[component][f"{module}.weight"]
    return {f"{prefix}.lora_A.weight": some_random(1, 4, into), f"{prefix}.lora_B.weight": some_random(2, out, 4)}


def own(name: str) -> dict[str, Array]:
    return dict(load_file(REPOSITORY / name / "1" / "weights.safetensors"))


def with_templates() -> Shapes:
    """The default engines, and for sd15 what graphs with a ControlNet and an IP-Adapter would name."""
    sd15 = engine("sd15")
    control = {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "conv_in.weight": (16, 4, 3, 3)}
    extra: Mapping[str, Mapping[str, tuple[int, ...]]] = {
        "controlnet": control,
        "ip_adapter": {"ip_adapter.1.to_k_ip.weight": (16, 128)},
        "ip_projection": {"image_proj.proj.weight": (512, 64)},
    }
    return {**shapes(), "sd15": EngineShapes("sd15", {**sd15.components, **extra}, sd15.needed)}


CONTROL = {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "conv_in.weight": (16, 4, 3, 3)}
IP = {"ip_adapter.1.to_k_ip.weight": (16, 128), "image_proj.proj.weight": (512, 64)}


def random(named: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    return {name: some_random(1, *shape) for name, shape in named.items()}


GOOD: Mapping[str, tuple[AssetType, dict[str, Array], Facts]] = {
    "a LoRA of SD 1.5": (
        AssetType.LORA,
        pair("sd15", "unet", Q, f"unet.{Q}"),
        Facts(("sd15",), "sd15", ("unet",), 0, "", ""),
    ),
    "a LoRA of SDXL's UNet and second encoder": (
        AssetType.LORA,
        pair("sdxl", "unet", DEEP, f"unet.{DEEP}")
        | pair("sdxl", "text_encoder_2", T, f"text_encoder_2.text_model.{T}"),
        Facts(("sdxl",), "sdxl", ("unet", "text_encoder_2"), 0, "", ""),
    ),
    "a LoRA of the first encoder alone, which families share": (
        AssetType.LORA,
        pair("sd15", "text_encoder", T, f"text_encoder.{T}"),
        Facts(("sd15", "sdxl", "ssd"), "sd15", ("text_encoder",), 0, "", ""),
    ),
    "a UNet": (AssetType.CHECKPOINT, own("ssd_unet"), Facts(("ssd",), "sdxl", ("unet",), 0, "", "")),
    "a VAE": (AssetType.VAE, own("sdxl_vae_decoder"), Facts(("sdxl", "ssd"), "sdxl", ("vae",), 0, "", "")),
    "an inversion": (
        AssetType.TEXTUAL_INVERSION,
        {"<luis>": some_random(1, 3, 128)},
        Facts(("sd15",), "sd15", ("text_encoder",), 3, "", ""),
    ),
    "an inversion of one vector": (
        AssetType.TEXTUAL_INVERSION,
        {"emb_params": some_random(1, 128)},
        Facts(("sd15",), "sd15", ("text_encoder",), 1, "", ""),
    ),
    "an inversion for two encoders": (
        AssetType.TEXTUAL_INVERSION,
        {"clip_g": some_random(1, 2, 128), "clip_l": some_random(2, 2, 128)},
        Facts(("sdxl", "ssd"), "sdxl", ("text_encoder", "text_encoder_2"), 2, "", ""),
    ),
    "a ControlNet": (AssetType.CONTROLNET, random(CONTROL), Facts(("sd15",), "sd15", ("controlnet",), 0, "", "")),
    "an IP-Adapter": (AssetType.IP_ADAPTER, random(IP), Facts(("sd15",), "sd15", ("ip_adapter",), 0, "", "linear")),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_s_facts_are_found(tmp_path: Path, name: str) -> None:
    type, tensors, facts = GOOD[name]
    assert inspect(saved(tensors, tmp_path / "f"), type, with_templates()) == facts


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_value_that_is_no_number_is_found_in_any_tensor(tmp_path: Path, name: str, value: float) -> None:
    type, tensors, _ = GOOD[name]
    broken = {**tensors, (last := list(tensors)[-1]): tensors[last].copy()}
    broken[last].flat[-1] = value
    with pytest.raises(BadAsset, match=re.escape(f"{last} holds NaN or infinity")):
        inspect(saved(broken, tmp_path / "f"), type, with_templates())


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("said", AssetType)
def test_a_file_given_as_another_type_is_refused(tmp_path: Path, name: str, said: AssetType) -> None:
    type, tensors, _ = GOOD[name]
    if said is type:
        return
    with pytest.raises(BadAsset, match=r"the file is an? .* by its tensors, not an? "):
        inspect(saved(tensors, tmp_path / "f"), said, with_templates())


def test_an_autoencoder_is_for_all_engines_that_have_one_of_its_names_and_shapes(tmp_path: Path) -> None:
    """The published ones of SD 1.5 and SDXL do."""
    vae = engine("sd15")
    alike = {
        name: replace(
            one,
            components={**one.components, "vae": vae.components["vae"]},
            needed={**one.needed, "vae": vae.needed["vae"]},
        )
        for name, one in shapes().items()
    }
    path = saved(own("sd15_vae_decoder"), tmp_path / "f")
    assert inspect(path, AssetType.VAE, shapes()).engines == ("sd15",)
    assert inspect(path, AssetType.VAE, alike) == Facts(("sd15", "sdxl", "ssd"), "sd15", ("vae",), 0, "", "")


def test_a_controlnet_s_file_may_say_what_its_maps_are(tmp_path: Path) -> None:
    for said, taken in (("canny", "canny"), ("../x", ""), ("", "")):
        path = saved(random(CONTROL), tmp_path / "f", {"preprocessor": said})
        assert inspect(path, AssetType.CONTROLNET, with_templates()).preprocessor == taken


def real_sdxl_lora() -> dict[str, Array]:
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    return {f"{name}.lora_down.weight": some_random(1, 4, 2048), f"{name}.lora_up.weight": some_random(2, 640, 4)}


BAD: Mapping[str, tuple[AssetType, dict[str, Array], str]] = {
    "of another size": (AssetType.LORA, real_sdxl_lora(), "fits none of this deployment's engines. sd15: "),
    "of no model": (AssetType.LORA, {"some.tensor": some_random(1, 3, 3, 3)}, "those of none of a checkpoint, a LoRA"),
    "a picture's features": (AssetType.VAE, {"layer.1": some_random(1, 3), "layer.2": some_random(1, 3)}, "none of"),
    "an inversion of another width": (
        AssetType.TEXTUAL_INVERSION, {"x": some_random(1, 768)}, "128 channels, the file 768",
    ),
    "an inversion of many": (AssetType.TEXTUAL_INVERSION, {"x": some_random(1, 76, 128)}, "76 vectors; at most 75"),
    "an unequal inversion": (
        AssetType.TEXTUAL_INVERSION,
        {"clip_l": some_random(1, 2, 128), "clip_g": some_random(1, 3, 128)},
        "different numbers of vectors",
    ),
    "text encoders alone": (
        AssetType.CHECKPOINT,
        {"unet.x": some_random(1, 3)},
        "it has no unet.x, which the file brings",
    ),
    "a checkpoint beyond half precision": (
        AssetType.CHECKPOINT,
        {**own("sd15_unet"), "conv_in.bias": np.full(16, 7e4, np.float32)},
        "conv_in.bias comes to",
    ),
    "a ControlNet of the first layout": (AssetType.CONTROLNET, {"control_model.x": some_random(1, 3)}, "convert it"),
    "half a ControlNet": (AssetType.CONTROLNET, random(dict([*CONTROL.items()][:1])), "file lacks conv_in.weight"),
    "an IP-Adapter of faces": (AssetType.IP_ADAPTER, {"image_proj.norm.weight": some_random(1, 3)}, "neither linear"),
    "an IP-Adapter with a resampler": (
        AssetType.IP_ADAPTER, {"image_proj.latents": some_random(1, 3)}, "no IP-Adapter with a plus projection",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_and_told_why(tmp_path: Path, name: str) -> None:
    type, tensors, reason = BAD[name]
    with pytest.raises(BadAsset, match=re.escape(reason)):
        inspect(saved(tensors, tmp_path / "f"), type, with_templates())


def test_a_file_of_another_family_is_told_every_engine_and_where_it_differs(tmp_path: Path) -> None:
    with pytest.raises(BadAsset) as told:
        inspect(saved(real_sdxl_lora(), tmp_path / "f"), AssetType.LORA, shapes())
    for card in shapes():
        assert f"{card}: " in str(told.value)
    assert "[640, 2048]" in str(told.value)


def test_without_templates_an_adapter_is_told_that_no_engine_takes_one(tmp_path: Path) -> None:
    adapters = ("controlnet", "ip_adapter", "ip_projection", "ip_projection_plus")
    plain: Shapes = {
        name: EngineShapes(
            shape.family,
            {part: names for part, names in shape.components.items() if part not in adapters},
            shape.needed,
        )
        for name, shape in shapes().items()
    }
    for type, tensors, reason in (
        (AssetType.CONTROLNET, random(CONTROL), "sd15: it takes no ControlNet"),
        (AssetType.IP_ADAPTER, random(IP), "sd15: it takes no IP-Adapter"),
    ):
        with pytest.raises(BadAsset, match=reason):
            inspect(saved(tensors, tmp_path / type.value), type, plain)


def test_what_no_engine_reads_is_looked_through_without_being_held(tmp_path: Path) -> None:
    """Its shape is compared with nothing: it may be as large as a disk lets it."""
    left = {"model_ema.x": np.zeros(48 << 18, np.float32)}
    path = saved(own("sd15_unet") | left, tmp_path / "f")
    inspect(path, AssetType.CHECKPOINT, shapes())
    tracemalloc.start()
    inspect(path, AssetType.CHECKPOINT, shapes())
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 40 << 20
    left["model_ema.x"][-1] = np.nan
    with pytest.raises(BadAsset, match=r"model_ema\.x holds NaN"):
        inspect(saved(own("sd15_unet") | left, path), AssetType.CHECKPOINT, shapes())


def test_a_pickle_and_a_header_without_end_are_refused(tmp_path: Path) -> None:
    for raw in (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00.", b"PK\x03\x04" * 30, b"\xff" * 64, b""):
        tmp_path.joinpath("f").write_bytes(raw)
        with pytest.raises(BadAsset, match="not a safetensors file"):
            inspect(tmp_path / "f", AssetType.LORA, shapes())


def test_looking_at_files_needs_neither_onnx_nor_a_training_framework() -> None:
    look = "import sys, server.builder.inspection; print({'onnx', 'torch', 'diffusers', 'openvino'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, cwd=REPOSITORY.parent)
    assert told.stdout == "set()\n", told.stderr
