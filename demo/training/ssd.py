"""Trains the SSD: SDXL's base with fewer blocks, distilled from it (Gupta et al. 2024, "Progressive Knowledge
Distillation of Stable Diffusion XL Using Layer Level Loss").

As in SSD-1B, no attention in the middle and fewer transformer layers below; what is left starts as the base's, and is
asked for the base's answer as well as for the picture.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from demo.training.attention import use_plain_attention
from demo.training.diffusion import alphas, noised, times
from demo.training.latents import Store
from demo.training.loop import Dice
from demo.training.sdxl import BATCH_PIXELS, CHANNELS, ID_WIDTH, MIX, WIDTH, Encoders, said, size_ids

TEACHER = 1.0  # weight of the base's answer beside the picture's


def new() -> UNet2DConditionModel:
    """An untrained UNet of SSD-1B's blocks."""
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=[1, [1, 1], [1, 1]],
        reverse_transformer_layers_per_block=[[1, 1, 2], [1, 1, 1], 1],
        attention_head_dim=(1, 1, 3),
        norm_num_groups=4,
        cross_attention_dim=2 * WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=ID_WIDTH,
        projection_class_embeddings_input_dim=WIDTH + 6 * ID_WIDTH,
    )


class Ssd:
    """The task."""

    def __init__(self, data: Path, encoders: Encoders, base: Path, folder: Path) -> None:
        self._store, self._encoders, self._folder = Store(data), encoders, folder
        self._schedule = alphas()
        self._teacher = UNet2DConditionModel.from_pretrained(base).eval().requires_grad_(False)
        use_plain_attention(self._teacher)
        torch.manual_seed(0)
        self.model: nn.Module = new()
        there = self._teacher.state_dict()
        self.model.load_state_dict({name: there[name] for name in self.model.state_dict()})
        use_plain_attention(self.model)

    def loss(self, done: float, dice: Dice) -> tuple[Tensor, int]:
        """See `Task`."""
        (width, height), z, scenes = self._store.batch(MIX, BATCH_PIXELS, dice)
        told = said(self._encoders, scenes, dice)
        t = times(len(z), 0.4 - 0.2 * done, dice)
        added = {"text_embeds": told.pooled, "time_ids": size_ids(2 * width, 2 * height, len(z))}
        x, v, weight = noised(z, t, self._schedule)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                taught = self._teacher(x, t, told.states, added_cond_kwargs=added).sample.float()
            guess = self.model(x, t, told.states, added_cond_kwargs=added).sample.float()
        error = F.mse_loss(guess, v, reduction="none") + TEACHER * F.mse_loss(guess, taught, reduction="none")
        return (error.mean((1, 2, 3)) * weight).mean(), len(z)

    def publish(self, average: UNet2DConditionModel) -> None:
        """See `Task`."""
        average.save_pretrained(self._folder)
