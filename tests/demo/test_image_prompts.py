"""Image encoder, IP-Adapters and transfer encoder: what their trainings rely on, and that diffusers agrees."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from demo.scenes import Scene, Thing, render, sample
from demo.training import ip_adapter, transfer
from demo.training.alike import alike_in_composition, alike_in_style, what_stands_where
from demo.training.image_encoder import new, pixel_values
from demo.training.ip_adapter import EVERYWHERE, Adapter
from export.photomaker import load

SDXL = Path("demo/checkpoints/sdxl")
SCENE = Scene("meadow", "night", (Thing("house", "purple", "left"),), False, True, False, False, False, 3)


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(SDXL, dtype=torch.float32)


@pytest.mark.parametrize(("width", "height"), [(224, 224), (512, 512), (448, 256), (320, 384)])
def test_pictures_are_prepared_as_clip_prepares_them(width: int, height: int) -> None:
    picture = render(SCENE, width, height)
    wanted = CLIPImageProcessorPil()(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    assert torch.allclose(pixel_values([picture]), wanted, atol=1e-5)


def test_scenes_alike_in_style_share_light_and_colours() -> None:
    rng = random.Random(0)
    for _ in range(50):
        other = alike_in_style(SCENE, rng)
        assert (other.place, other.time, {thing.colour for thing in other.things}) == ("meadow", "night", {"purple"})


def test_scenes_alike_in_composition_share_what_stands_where_and_no_light() -> None:
    rng = random.Random(0)
    for _ in range(50):
        other = alike_in_composition(SCENE, rng)
        assert [(thing.kind, thing.side) for thing in other.things] == [("house", "left")]
        assert other.time != "night"


def test_what_stands_where_says_neither_light_nor_colour() -> None:
    rng = random.Random(0)
    for _ in range(200):
        text = what_stands_where(replace(SCENE, clouds=rng.random() < 0.5), rng)
        assert not {"purple", "red", "night", "moon", "moonlight", "dark", "day", "noon"} & set(text.split()), text


def _ask(unet: UNet2DConditionModel, states: Tensor, **beside: Tensor) -> Tensor:
    torch.manual_seed(1)
    x, added = torch.randn(2, 4, 16, 24), {"text_embeds": torch.randn(2, 128), "time_ids": torch.full((2, 6), 512.0)}
    with torch.no_grad():
        out: Tensor = unet(x, torch.tensor([900, 200]), states, added_cond_kwargs=added | beside).sample
    return out


@pytest.mark.parametrize("blocks", [EVERYWHERE, ("up_blocks.0.attentions.1",)], ids=["full", "style"])
def test_an_adapter_does_in_diffusers_what_it_did_in_training(
    blocks: tuple[str, ...], pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    unet = UNet2DConditionModel.from_pretrained(SDXL / "unet", dtype=torch.float32).eval()
    torch.manual_seed(0)
    adapter = Adapter(unet)
    adapter.write(tmp_path / "adapter.safetensors")
    adapter.load_state_dict(load_file(tmp_path / "adapter.safetensors"))
    states, embedding = torch.randn(2, 77, 256), torch.randn(2, 128)
    for name, attention in adapter.attach(unet).items():
        attention.on = name.startswith(blocks)
    with torch.no_grad():
        here = _ask(unet, torch.cat([states, adapter.image_proj(embedding)], 1))
    pipe.load_ip_adapter(tmp_path, subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(1.0 if blocks == EVERYWHERE else {"up": {"block_0": [0.0, 1.0, 0.0]}})
    there = _ask(pipe.unet, states, image_embeds=[embedding[:, None]])
    pipe.set_ip_adapter_scale(0.0)
    without = _ask(pipe.unet, states, image_embeds=[embedding[:, None]])
    pipe.unload_ip_adapter()
    assert torch.allclose(here, there, atol=1e-4)
    assert not torch.allclose(here, without, atol=1e-2)


def test_every_method_changes_only_its_own_blocks() -> None:
    for network in (ip_adapter.Sdxl(SDXL), ip_adapter.Sd15(Path("demo/checkpoints/sd15"))):
        places = list(Adapter(network.unet).attach(network.unet))
        chosen = {name: {p for p in places if p.startswith(blocks)} for name, blocks in network.blocks.items()}
        assert chosen["full"] == set(places)
        assert chosen["style"]
        assert chosen["composition"]
        assert not chosen["style"] & chosen["composition"]


def test_the_transfer_file_is_what_was_trained(pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(SDXL / "unet", dtype=torch.float32).eval()
    torch.manual_seed(0)
    model = transfer.Photomaker(CLIPVisionModelWithProjection(new().config), unet)
    for part in model.lora.parameters():
        torch.nn.init.normal_(part, std=0.05)
    model.half().float().write(tmp_path)
    encoder, lora = load(tmp_path / "photomaker.bin", CLIPVisionConfig.from_pretrained(tmp_path))
    text, pixels, states = torch.randn(1, 256), torch.randn(1, 3, 224, 224), torch.randn(2, 77, 256)
    with torch.no_grad():
        wanted = model.encoder.fuse_module(text, model.encoder.identity(pixels))
        assert torch.allclose(encoder.fuse_module(text, encoder.identity(pixels)), wanted, atol=1e-5)
    without = _ask(unet, states)
    model.attach(unet)
    here = _ask(unet, states)
    pipe.load_lora_weights(lora, adapter_name="photomaker")
    there = _ask(pipe.unet, states)
    pipe.unload_lora_weights()
    assert torch.allclose(here, there, atol=1e-4)
    assert not torch.allclose(here, without, atol=1e-2)


def test_a_subjects_noun_stands_once_for_every_picture() -> None:
    tokenizer, rng = transfer.CLIPTokenizer.from_pretrained(SDXL / "tokenizer"), random.Random(5)
    seen = 0
    for _ in range(60):
        scene = sample(rng)
        things = [thing for thing in scene.things if thing.colour != "white" and thing.kind in ("house", "cat")]
        told = transfer.tell(tokenizer, scene, things, rng) if things else None
        if told is None:
            continue
        seen += 1
        ids = transfer.encode(tokenizer, [told.text])[0]
        repeated, places = transfer.spread(ids, told)
        assert len(repeated) == 77
        assert len(places) == sum(len(subject.pictures) for subject in told.subjects)
        nouns = {tokenizer.decode([repeated[place]]).strip() for place in places}
        assert nouns <= {"house", "home", "cottage", "cabin", "hut", "cat", "kitten", "kitty"}, told.text
    assert seen > 10
