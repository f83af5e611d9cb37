"""Graphs for weights that come later: ControlNet and IP-Adapter beside a UNet, an adapter's projections."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from checkpoints import SDXL_UNET, SSD_UNET, change_json, write_sd15, write_sdxl
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.numpy import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from export import ExportError, parity
from export.checkpoint import Checkpoint, open_checkpoint
from export.recipes import TemplateRecipe, examples, image_prompt, sd15, sdxl
from export.repository import Recipe, _export_template
from export.weights import load_component
from server.engines.openvino_runtime import OpenVINOEngine
from server.engines.port import Array


def with_image_encoder(folder: Path, **config: int) -> None:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"image_size": 64, "patch_size": 32, "projection_dim": 12}
    CLIPVisionModelWithProjection(CLIPVisionConfig(**{**shape, **config})).half().save_pretrained(
        folder / "image_encoder"
    )


def plus_file(path: Path, vision_width: int = 16, text_width: int = 40) -> Path:
    shape = image_prompt.PlusShape(vision_width, width=24, heads=1, hidden=96, text_width=text_width)
    tensors = image_prompt.Resampler(shape).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"image_proj.{name}": tensor.numpy() for name, tensor in tensors.items()}, path)
    return path


def joined_plus(checkpoint: Checkpoint, file: Path) -> Checkpoint:
    return checkpoint.join(image_prompt.PLUS, Checkpoint(file, file.name))


@pytest.fixture(scope="module")
def sdxl_like(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("checkpoint") / "sdxl"
    write_sdxl(folder, {**SDXL_UNET, "layers_per_block": 2})
    with_image_encoder(folder)
    return joined_plus(open_checkpoint(str(folder), None, ()), plus_file(folder / "plus" / "plus.safetensors"))


def template_of(name: str, recipe: Recipe, checkpoint: Checkpoint) -> TemplateRecipe:
    card = recipe.card(checkpoint, "tiny", "", None)
    return next(one for one in recipe.templates(checkpoint, card) if one.engine.spec.name == f"tiny_{name}")


def module_of(template: TemplateRecipe, recipe: Recipe, checkpoint: Checkpoint) -> torch.nn.Module:
    if not template.engine.component:
        return template.engine.wrap(torch.nn.Module())
    return template.engine.wrap(load_component(recipe.COMPONENTS["unet"], checkpoint, "unet"))


def gap(found: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """The largest relative difference; checks that something was compared."""
    assert all(float(tensor.std()) > 0 for tensor in expected.values())
    return max(float(np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()) for name in expected)


@pytest.mark.parametrize("name", ["unet_control", "unet_ip", "ip_projection", "ip_projection_plus"])
def test_each_module_gives_what_diffusers_gives_with_its_weights(name: str, sdxl_like: Checkpoint) -> None:
    template = template_of(name, sdxl, sdxl_like)
    module = module_of(template, sdxl, sdxl_like)
    inputs = examples(template.engine, template.engine.checked, seed=4)
    found = parity.reference(template.engine, module, inputs)
    expected = parity.computed(template.engine.spec, template.reference, module, inputs)
    assert gap(found, expected) < 1e-5


@pytest.mark.parametrize(("name", "scale"), [("unet_control", "control_scale"), ("unet_ip", "ip_scale")])
def test_an_adapter_of_scale_0_leaves_the_plain_unet(name: str, scale: str, sdxl_like: Checkpoint) -> None:
    template = template_of(name, sdxl, sdxl_like)
    module = module_of(template, sdxl, sdxl_like)
    inputs = examples(template.engine, template.engine.golden, seed=5)
    touched = parity.reference(template.engine, module, inputs)
    inputs[scale] = np.zeros_like(inputs[scale])
    found = parity.reference(template.engine, module, inputs)
    assert template.plain is not None
    expected = parity.computed(template.engine.spec, template.plain, module, inputs)
    assert gap(found, expected) < 1e-6
    assert gap(touched, expected) > 1e-2


def test_a_masked_row_of_an_image_prompt_is_the_plain_unets(sdxl_like: Checkpoint) -> None:
    template = template_of("unet_ip", sdxl, sdxl_like)
    module = module_of(template, sdxl, sdxl_like)
    inputs = examples(template.engine, template.engine.golden, seed=6)
    inputs["ip_mask"][0] = 0
    found = parity.reference(template.engine, module, inputs)
    assert template.plain is not None
    expected = parity.computed(template.engine.spec, template.plain, module, inputs)
    rows = [np.abs(found["prediction"][row] - expected["prediction"][row]).max() for row in range(2)]
    assert rows[0] < 1e-5 < 1e-2 < rows[1]


def test_a_masked_pixel_of_a_map_reads_as_minus_one(sdxl_like: Checkpoint) -> None:
    template = template_of("unet_control", sdxl, sdxl_like)
    module = module_of(template, sdxl, sdxl_like)
    inputs = examples(template.engine, template.engine.golden, seed=7)
    seen: list[torch.Tensor] = []
    module.get_submodule("controlnet").register_forward_pre_hook(lambda _, given: seen.append(given[3]))
    parity.reference(template.engine, module, inputs)
    (map,) = seen  # rows 3 h w
    hidden = torch.from_numpy(inputs["control"][..., 3] == 0)
    assert 0 < int(hidden.sum()) < hidden.numel()
    assert bool((map.permute(0, 2, 3, 1)[hidden] == -1).all())
    shown = torch.from_numpy(inputs["control"][..., :3]).float() / 255
    torch.testing.assert_close(map.permute(0, 2, 3, 1)[~hidden], shown[~hidden])


def test_a_controlnet_reads_the_latents_of_an_inpainting_unet_alone(tmp_path: Path) -> None:
    write_sd15(tmp_path / "inpainting", in_channels=9)
    checkpoint = open_checkpoint(str(tmp_path / "inpainting"), None, ())
    template = template_of("unet_control", sd15, checkpoint)
    module = module_of(template, sd15, checkpoint)
    assert module.get_submodule("controlnet").get_parameter("conv_in.weight").shape[1] == 4
    inputs = examples(template.engine, template.engine.golden, seed=8)
    assert inputs["sample"].shape[1] == 9
    assert parity.reference(template.engine, module, inputs)["prediction"].shape[1] == 4


def test_the_card_numbers_the_blocks_as_a_published_file_does(sdxl_like: Checkpoint) -> None:
    """Down, up, then the middle: by the order in which diffusers' loader counts."""
    blocks = sdxl.card(sdxl_like, "tiny", "", None).ip_blocks
    assert blocks[0] == "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    assert blocks[-1] == "mid_block.attentions.0.transformer_blocks.1.attn2"
    assert [block.partition(".")[0] for block in blocks] == sorted(block.partition(".")[0] for block in blocks[:-2]) + [
        "mid_block"
    ] * 2


def test_a_graph_without_weights_says_whose_each_is_and_its_golden_tensors_are_the_plain_unets(
    checkpoint: Checkpoint, rendered: Path
) -> None:
    version = rendered / "tiny_unet_control" / "1"
    graph = onnx.load(version / "model.onnx", load_external_data=False).graph
    owners: dict[str, set[str]] = {}
    for tensor in graph.initializer:
        if tensor.external_data:
            owner, _, name = tensor.name.partition("/")
            assert {entry.key: entry.value for entry in tensor.external_data}["location"] == owner
            assert tensor.data_type == onnx.TensorProto.FLOAT16
            owners.setdefault(owner, set()).add(name)
    unet = UNet2DConditionModel.from_pretrained(checkpoint.path("unet"))
    twin = ControlNetModel.from_unet(unet)
    assert owners == {"unet": set(unet.state_dict()), "controlnet": set(twin.state_dict())}
    golden = load_file(version / "golden.safetensors")
    assert not golden["input.control_scale"].any()
    plain = OpenVINOEngine(rendered / "tiny_unet" / "1" / "model.onnx", ["prediction"], "float32")
    inputs = {name: golden[f"input.{name}"] for name in ("sample", "timestep", "encoder_hidden_states")}
    np.testing.assert_allclose(plain.run(inputs)["prediction"], golden["output.prediction"], atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["unet_control", "unet_ip", "ip_projection_plus"])
@pytest.mark.parametrize("kind", ["sdxl", "ssd", "inpainting"])
def test_graphs_of_all_shapes_give_what_diffusers_gives(name: str, kind: str, tmp_path: Path) -> None:
    unet = {"sdxl": SDXL_UNET, "ssd": SSD_UNET, "inpainting": {**SDXL_UNET, "in_channels": 9}}[kind]
    write_sdxl(tmp_path / "base", unet)
    with_image_encoder(tmp_path / "base")
    checkpoint = joined_plus(
        open_checkpoint(str(tmp_path / "base"), None, ()), plus_file(tmp_path / "plus.safetensors")
    )
    template = template_of(name, sdxl, checkpoint)
    (tmp_path / "out").mkdir()
    row = _export_template(template, sdxl.COMPONENTS, checkpoint, tmp_path / "out", lambda text: None)
    assert row.passed, row
    assert not (tmp_path / "out" / f"tiny_{name}" / "1" / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"cross_attention_dim": 16}, "cross_attention_dim is 16, must be 40"),
        ({"conditioning_embedding_out_channels": [8, 16]}, r"pixels a latent .* is 2, must be 8"),
        ({"in_channels": 9}, "in_channels is 9, must be 4"),
        ({"global_pool_conditions": True}, "global_pool_conditions is True, must be False"),
    ],
)
def test_a_controlnet_of_another_shape_is_refused_with_the_field(
    fields: dict[str, object], reason: str, sdxl_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(sdxl_folder, tmp_path / "base")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads((sdxl_folder / "unet/config.json").read_text()))
        twin = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    twin.save_config(tmp_path / "base" / "controlnet")
    checkpoint = open_checkpoint(str(tmp_path / "base"), None, ())
    assert sdxl.card(checkpoint, "tiny", "", None).control
    change_json(tmp_path / "base" / "controlnet" / "config.json", **fields)
    with pytest.raises(ExportError, match=reason):
        sdxl.card(checkpoint, "tiny", "", None)


def test_a_plus_adapter_of_another_shape_is_refused_with_what_differs(sdxl_like: Checkpoint, tmp_path: Path) -> None:
    assert sdxl.card(sdxl_like, "tiny", "", None).ip_plus
    other = joined_plus(sdxl_like, plus_file(tmp_path / "other.safetensors", vision_width=8, text_width=24))
    with pytest.raises(ExportError, match=r"reads of the image encoder are 8, must be 16; .* are 24, must be 40"):
        sdxl.card(other, "tiny", "", None)
    save_file({"image_proj.proj.weight": np.zeros((4, 4), np.float32)}, tmp_path / "plain.safetensors")
    with pytest.raises(ExportError, match='is no IP-Adapter of the "plus" kind'):
        sdxl.card(joined_plus(sdxl_like, tmp_path / "plain.safetensors"), "tiny", "", None)
