"""Trains SDXL's refiner: it takes over where little noise is left.

Its blocks are like the published one's: no attention in the first and the last level, only the second text encoder, and
an aesthetic score among its five numbers. It starts from the base. A share of its pictures is shown with softened
latents and a low score; so it learns what a low score means, and guidance away from it sharpens.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from demo.training.attention import use_plain_attention
from demo.training.diffusion import TRAINED_STEPS, alphas, spread, v_loss
from demo.training.grow import add_nothing
from demo.training.latents import Store
from demo.training.loop import Dice
from demo.training.sdxl import BATCH_PIXELS, CHANNELS, ID_WIDTH, MIX, WIDTH, Encoders, said

TIMES = 200  # the timesteps it is for: the last fifth of the way
BEYOND = 0.15  # share of the batch from noisier times, so that another cut than the usual one works too
SOFT = 0.35  # share of pictures that are softened
GOOD, POOR = (5.5, 7.0), (1.5, 3.5)  # their scores; a pipeline asks for 6 and away from 2.5


def new() -> UNet2DConditionModel:
    """An untrained refiner whose residual branches add nothing."""
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=1,
        attention_head_dim=(1, 1, 3),
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=ID_WIDTH,
        projection_class_embeddings_input_dim=WIDTH + 5 * ID_WIDTH,
    )
    add_nothing(unet)
    return unet


@torch.no_grad()
def start_from(base: UNet2DConditionModel, refiner: UNet2DConditionModel) -> None:
    """The base's weights wherever the refiner has the same part."""
    source = base.state_dict()
    for name, target in refiner.state_dict().items():
        if name not in source:
            continue
        weight = source[name]
        if ".attn2.to_k." in name or ".attn2.to_v." in name:
            weight = weight[:, WIDTH:]  # of the second text encoder
        if name == "add_embedding.linear_1.weight":
            last = target.shape[1] - ID_WIDTH
            target[:, :last].copy_(weight[:, :last])  # pooled text, original size, crop
            target[:, last:].zero_()
            continue
        target.copy_(weight)


def soften(z: Tensor, share: Tensor) -> Tensor:
    """b 4 h w with outlines blurred by shares (b, 0..1) of a 3x3 average."""
    padded = F.pad(z, (1, 1, 1, 1), mode="replicate")
    return torch.lerp(z, F.avg_pool2d(padded, 3, 1), share.view(-1, 1, 1, 1))


class Refiner:
    """The task."""

    def __init__(self, data: Path, encoders: Encoders, base: Path, folder: Path) -> None:
        self._store, self._encoders, self._folder = Store(data), encoders, folder
        self._schedule = alphas()
        torch.manual_seed(0)
        self.model: nn.Module = new()
        start_from(UNet2DConditionModel.from_pretrained(base), self.model)
        use_plain_attention(self.model)

    def loss(self, done: float, dice: Dice) -> tuple[Tensor, int]:
        """See `Task`."""
        (width, height), z, scenes = self._store.batch(MIX, BATCH_PIXELS, dice)
        soft = torch.rand(len(z)) < SOFT
        z = soften(z, torch.where(soft, 0.4 + 0.6 * torch.rand(len(z)), torch.zeros(len(z))))
        low, high = (torch.where(soft, poor, good) for poor, good in zip(POOR, GOOD, strict=True))
        score = low + (high - low) * torch.rand(len(z))
        told = said(self._encoders, scenes, dice)
        u = spread(len(z), dice)
        last = torch.where(torch.rand(len(z)) < BEYOND, TRAINED_STEPS, TIMES)
        t = (u * last).long()
        size = torch.tensor([[2.0 * height, 2.0 * width, 0.0, 0.0]] * len(z))
        added = {"text_embeds": told.pooled, "time_ids": torch.cat([size, score[:, None]], 1)}

        def predict(x: Tensor) -> Tensor:
            guess: Tensor = self.model(x, t, told.states[..., WIDTH:], added_cond_kwargs=added).sample
            return guess

        return v_loss(predict, z, t, self._schedule), len(z)

    def publish(self, average: UNet2DConditionModel) -> None:
        """See `Task`."""
        average.save_pretrained(self._folder)
