"""The IP-Adapters and the transfer encoder in the repository do what they are there for. One step each, no sampling."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from demo.scenes import Scene, Thing, render
from demo.tokenizer import encode
from demo.training import ip_adapter, sdxl, transfer
from demo.training.diffusion import alphas
from demo.training.vae import pictures_to_tensor
from export.photomaker import load

CHECKPOINTS, ASSETS = Path("demo/checkpoints"), Path("model_repository/assets")
SCENE = Scene("snow", "night", (Thing("house", "green", "left"),), False, True, False, False, False, 3)
OTHER = Scene("desert", "day", (Thing("cat", "red", "right"),), True, False, False, False, False, 4)


def _latents(folder: Path, scene: Scene, side: int) -> Tensor:
    vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
    with torch.no_grad():
        z: Tensor = vae.encode(pictures_to_tensor([render(scene, side, side)])).latent_dist.mean
    return z


def _clean(z: Tensor, timestep: int, ask: Callable[[Tensor], Tensor]) -> Tensor:
    """The clean image that a network sees in a noised one."""
    share = alphas()[timestep]
    x = share.sqrt() * z + (1 - share).sqrt() * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return share.sqrt() * x - (1 - share).sqrt() * ask(x)


@pytest.mark.parametrize(("engine", "side"), [("sd15", 256), ("sdxl", 1024)])
def test_an_ip_adapter_brings_its_image(engine: str, side: int) -> None:
    folder = CHECKPOINTS / engine
    network = {"sd15": ip_adapter.Sd15, "sdxl": ip_adapter.Sdxl}[engine](folder)
    vision = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", dtype=torch.float32)
    adapter = ip_adapter.Adapter(network.unet)
    adapter.load_state_dict(load_file(ASSETS / f"ip-adapter-{engine}.safetensors"))
    attentions = adapter.attach(network.unet).values()
    z, stored = _latents(folder, SCENE, side), (side, side) if engine == "sd15" else (side // 2, side // 2)

    def error(image: Scene, on: bool) -> float:
        for attention in attentions:
            attention.on = on
        torch.manual_seed(0)  # whether the empty text is zeros
        with torch.no_grad():
            tokens = adapter.image_proj(ip_adapter.embed(vision, [image], stored))
        ask = network.ask([""], tokens, stored, torch.tensor([980]))
        return float((_clean(z, 980, ask) - z).square().mean())

    assert error(SCENE, True) < 0.8 * error(SCENE, False)
    assert error(OTHER, True) > 1.5 * error(SCENE, True)


def test_transfer_images_bring_the_subjects_colour() -> None:
    folder = CHECKPOINTS / "sdxl"
    network = ip_adapter.Sdxl(folder)
    encoders = sdxl.Encoders(folder / "text_encoder", folder / "text_encoder_2", folder / "tokenizer")
    file = CHECKPOINTS / "sdxl-photomaker"
    encoder, lora = load(file / "photomaker.bin", CLIPVisionConfig.from_pretrained(file))
    model = transfer.Photomaker(
        CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", dtype=torch.float32), network.unet
    )
    names = {name.removeprefix("unet.").replace(".processor", ""): p for name, p in lora.items()}
    model.lora.load_state_dict({name: names[name.replace("/", ".")] for name in model.lora.state_dict()})
    model.attach(network.unet)
    text = "a house on the left in the snow at night, the moon"
    told = transfer.Told(text, (transfer.Subject(SCENE.things[0], 2, ()),))
    ids = torch.tensor(encode(encoders.tokenizer, [text]))
    z = _latents(folder, SCENE, 1024)

    def error(colour: str) -> float:
        """Of the clean image, the images showing a house of this colour."""
        images = tuple(
            transfer.portrait(replace(told.subjects[0].thing, colour=colour), random.Random(n)) for n in (1, 2)
        )
        repeated, places = transfer.spread(
            ids[0].tolist(), replace(told, subjects=(replace(told.subjects[0], pictures=images),))
        )
        with torch.no_grad():
            states = transfer.hidden(encoders, torch.tensor([repeated]))
            identity = encoder.identity(ip_adapter.looked_at(images, (ip_adapter.LOOKED, ip_adapter.LOOKED)))
            states[0, places] = encoder.fuse_module(states[0, places], identity)
            pooled = encoders.second(ids).text_embeds
        added = {"text_embeds": pooled, "time_ids": sdxl.size_ids(1024, 1024, 1)}
        clean = _clean(z, 950, lambda x: network.unet(x, torch.tensor([950]), states, added_cond_kwargs=added).sample)
        return float((clean - z).square().mean())

    right = error("green")
    assert all(error(colour) > 1.1 * right for colour in ("red", "purple", "yellow"))
