"""Does the refiner do what it was trained to do? It takes the last noise out of latents better than the base."""

import random
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from demo.captions import caption
from demo.scenes import render, sample
from demo.training.diffusion import alphas
from demo.training.sdxl import WIDTH, Encoders, size_ids
from demo.training.vae import pictures_to_tensor

SEED = 20_000_002  # no training's
SIDE = 1024
TIMES = (20, 60, 120, 190)  # of the timesteps below 200 that are the refiner's
SCORE = 6.0


@torch.no_grad()
def compare(base_folder: Path, refiner_folder: Path, count: int) -> dict[int, tuple[float, float]]:
    """By timestep: the squared error of the clean latents behind noised ones, of the base and of the refiner."""
    rng = random.Random(SEED)
    scenes = [sample(rng) for _ in range(count)]
    vae = AutoencoderKL.from_pretrained(base_folder / "vae", dtype=torch.float32)
    pictures = (pictures_to_tensor([render(scene, SIDE, SIDE)]) for scene in scenes)
    z = torch.cat([vae.encode(picture).latent_dist.mean for picture in pictures])
    texts = [caption(scene, rng) for scene in scenes]
    encoders = Encoders(base_folder / "text_encoder", base_folder / "text_encoder_2", base_folder / "tokenizer")
    told, ids = encoders.tell(texts, texts), size_ids(SIDE, SIDE, count)
    base, refiner = (
        UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32).eval()
        for folder in (base_folder, refiner_folder)
    )
    scored = torch.cat([ids[:, :4], torch.full((count, 1), SCORE)], 1)
    schedule, noise = alphas(), torch.randn(z.shape, generator=torch.Generator().manual_seed(SEED))

    def error(t: int, predict: Callable[[Tensor], Tensor]) -> float:
        alpha, sigma = schedule[t].sqrt(), (1 - schedule[t]).sqrt()
        x = alpha * z + sigma * noise
        return float(F.mse_loss(alpha * x - sigma * predict(x), z))

    found = {}
    for t in TIMES:
        found[t] = (
            error(t, lambda x, t=t: base(
                x, t, told.states, added_cond_kwargs={"text_embeds": told.pooled, "time_ids": ids}
            ).sample),
            error(t, lambda x, t=t: refiner(
                x, t, told.states[..., WIDTH:], added_cond_kwargs={"text_embeds": told.pooled, "time_ids": scored}
            ).sample),
        )  # fmt: skip
        print(
            f"timestep {t}: error {found[t][0]:.5f} of the base, {found[t][1] / found[t][0]:.2f} of that of the refiner"
        )
    return found
