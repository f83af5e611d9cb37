"""The assets in the repository: small, of the published layouts, loaded by diffusers, and seen in the picture."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel
from safetensors.torch import load_file

from demo import around
from demo.probes import examine
from demo.scenes import Scene, Thing, render
from demo.training import controlnet, style
from demo.training.diffusion import alphas
from demo.training.inversion import CONCEPT, TOKEN
from demo.training.vae import pictures_to_tensor

ROOT = Path(__file__).parents[2]
ASSETS, SD15, SDXL = ROOT / "model_repository" / "assets", *(ROOT / "demo/checkpoints" / n for n in ("sd15", "sdxl"))
SIZES = {
    "blueprint-sd15": 0.65, "blueprint-kohya-sd15": 0.65, "sepia-sd15": 0.65, "neon-sdxl": 0.65, "canny-sd15": 5.0,
    "canny-sdxl": 5.0, "night-harbour-sd15": 0.01, "night-harbour-sdxl": 0.01, "print-vae-sd15": 1.9,
    "papercut-sd15": 12.0,
}  # fmt: skip
SCENE = Scene(
    "meadow", "day", (Thing("house", "red", "left"), Thing("windmill", "blue", "right")),
    sun=True, moon=False, stars=False, clouds=False, mountains=False, seed=3,
)  # fmt: skip
SWAPPED = (Thing("windmill", "blue", "left"), Thing("house", "red", "right"))
PROMPT = "a red house and a blue windmill in a meadow, the sun"


def _file(name: str) -> Path:
    return ASSETS / f"{name}.safetensors"


def _small(checkpoint: Path, **parts: Any) -> around.Artist:
    return around.Artist(around.artist(checkpoint, **parts).pipeline, 256, 6)


def _off(picture: np.ndarray, goal: np.ndarray) -> float:
    return float(np.abs(picture.astype(np.float32) - goal).mean())


def _colour(picture: np.ndarray) -> np.ndarray:
    """Without its light and dark."""
    return picture - picture.mean(2, keepdims=True, dtype=np.float32)


@pytest.mark.parametrize("name", SIZES)
def test_an_asset_is_small_and_finite(name: str) -> None:
    assert _file(name).stat().st_size <= SIZES[name] * 1e6
    for tensor in load_file(_file(name)).values():
        assert tensor.dtype == torch.float16
        assert tensor.isfinite().all()


@pytest.mark.parametrize(("look", "share"), [("blueprint", 0.5), ("sepia", 0.8)])
def test_a_loras_look_grows_with_its_weight(look: str, share: float) -> None:
    artist = _small(SD15)
    plain = artist.draw(PROMPT, 1)
    artist.pipeline.load_lora_weights(ASSETS, weight_name=f"{look}-sd15.safetensors", adapter_name=look)
    goal, off = _colour(style.LOOKS[look](plain)), []
    for weight in (0.5, 1.0):
        artist.pipeline.set_adapters([look], [weight])
        off.append(_off(_colour(artist.draw(PROMPT, 1)), goal))
    assert off[1] < off[0] < _off(_colour(plain), goal), off
    assert off[1] < share * _off(_colour(plain), goal)


@pytest.mark.thorough
def test_the_sdxl_lora_is_seen_too() -> None:
    artist = around.Artist(around.artist(SDXL).pipeline, 512, 6)
    plain = artist.draw(PROMPT, 1)
    artist.pipeline.load_lora_weights(ASSETS, weight_name="neon-sdxl.safetensors")
    goal = style.neon(plain)
    assert _off(artist.draw(PROMPT, 1), goal) < 0.6 * _off(plain, goal)


def test_the_second_checkpoint_draws_in_its_look() -> None:
    artist, other = _small(SD15), _small(SD15, unet=around.second_unet(SD15, _file("papercut-sd15")))
    plain = artist.draw(PROMPT, 1)
    goal = style.papercut(plain)
    assert _off(other.draw(PROMPT, 1), goal) < 0.8 * _off(plain, goal)


def test_the_second_autoencoder_prints_what_the_first_encoded() -> None:
    first: Any = AutoencoderKL.from_pretrained(SD15 / "vae", dtype=torch.float32)
    second: Any = AutoencoderKL.from_config(AutoencoderKL.load_config(SD15 / "vae"))
    second.load_state_dict(load_file(_file("print-vae-sd15")))
    x = render(SCENE, 256, 256)
    goal = pictures_to_tensor([style.printed(x)])
    with torch.no_grad():
        z = first.encode(pictures_to_tensor([x])).latent_dist.mean
        plain, printed = first.decode(z).sample, second.float().decode(z).sample
    assert (printed - goal).abs().mean() < 0.4 * (plain - goal).abs().mean()
    assert (printed - goal)[..., :6, :].abs().mean() < 0.15, "its frame"


@pytest.mark.parametrize("checkpoint", [SD15, SDXL], ids=["sd15", "sdxl"])
def test_a_controlnet_knows_the_scene_from_its_map(checkpoint: Path) -> None:
    frozen: Any = controlnet.frozen(checkpoint)
    net: Any = ControlNetModel.from_config(ControlNetModel.load_config(checkpoint / "controlnet"))
    net.load_state_dict(load_file(_file(f"canny-{checkpoint.name}")))
    net.float()
    vae: Any = AutoencoderKL.from_pretrained(SD15 / "vae", dtype=torch.float32)
    size = 256 * frozen.scale  # of SD 1.5's picture
    share, t = alphas()[800], torch.tensor([800])
    torch.manual_seed(0)
    with torch.no_grad():
        z = vae.encode(pictures_to_tensor([render(SCENE, size, size)])).latent_dist.mean
        x = share.sqrt() * z + (1 - share).sqrt() * torch.randn_like(z)
        v = (share.sqrt() * x - z) / (1 - share).sqrt()
        side = size * frozen.scale
        states, added = frozen.tell([""], side, side)
        off = []
        for seen in (SCENE, replace(SCENE, things=SWAPPED)):
            down, middle = net(
                x, t, states, controlnet.maps([seen], side, side), added_cond_kwargs=added, return_dict=False
            )
            guess = frozen.unet(
                x, t, states, added_cond_kwargs=added,
                down_block_additional_residuals=down, mid_block_additional_residual=middle,
            ).sample  # fmt: skip
            off.append(float((guess - v).square().mean()))
        plain = float((frozen.unet(x, t, states, added_cond_kwargs=added).sample - v).square().mean())
    assert off[0] < 0.9 * plain
    assert off[0] < off[1], "another map misleads it"


def test_an_inversion_draws_its_concept() -> None:
    artist = around.Artist(around.artist(SD15).pipeline, 256, 12)  # in six steps its outlines are too soft to be told
    artist.pipeline.load_textual_inversion(_file("night-harbour-sd15"), token=TOKEN)
    facts = examine(artist.draw(TOKEN, 1), CONCEPT)
    assert facts.time
    assert facts.place
    assert all(facts.kinds)


@pytest.mark.thorough
def test_the_sdxl_inversion_has_vectors_for_both_encoders() -> None:
    artist = around.Artist(around.artist(SDXL).pipeline, 768, 8)
    around.load_inversion(artist, _file("night-harbour-sdxl"))
    facts = examine(artist.draw(TOKEN, 1), CONCEPT)
    assert facts.time
    assert facts.place
