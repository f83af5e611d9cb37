"""Trains the SD 1.5 UNet: SD 1.5's own blocks, narrower, v-prediction on SD 1.5's noise schedule, from nothing.

The finest level's self-attention adds nothing (its output weights are zero) and costs nothing in training: at 512 px it
would take more time than all the rest.
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from demo.captions import caption
from demo.tokenizer import encode
from demo.training.attention import NoAttention, use_plain_attention
from demo.training.diffusion import alphas, times, v_loss
from demo.training.grow import add_nothing
from demo.training.latents import Store
from demo.training.loop import Dice

CHANNELS = (16, 32, 96, 128)
HEADS = (1, 1, 3, 4)
BATCH_PIXELS = 24 * 256 * 256  # pixels a step and process
NO_CAPTION = 0.1
LARGE_FROM = 0.25  # share of the time after which the large sizes are trained
SMALL = {(256, 256): 0.8, (384, 256): 0.08, (256, 384): 0.08, (192, 352): 0.02, (352, 192): 0.02}
LARGE = {
    (512, 512): 0.56, (256, 256): 0.10, (768, 512): 0.07, (512, 768): 0.07, (384, 704): 0.04, (704, 384): 0.04,
    (640, 640): 0.05, (768, 768): 0.07,
}  # fmt: skip


def new() -> UNet2DConditionModel:
    """An untrained UNet of the checkpoint's shape whose residual branches start as zero."""
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        attention_head_dim=HEADS,
        norm_num_groups=4,
        layers_per_block=2,
        cross_attention_dim=128,
    )
    add_nothing(unet)
    return unet


def lighten(unet: UNet2DConditionModel) -> None:
    """Makes training cheap: plain attention, and none at the finest level, whose weights are zeroed and frozen."""
    use_plain_attention(unet)
    for transformer in [*unet.down_blocks[0].attentions, *unet.up_blocks[-1].attentions]:
        for block in transformer.transformer_blocks:
            nn.init.zeros_(block.attn1.to_out[0].weight)
            nn.init.zeros_(block.attn1.to_out[0].bias)
            block.attn1.requires_grad_(False)
            block.attn1.set_processor(NoAttention())


class Sd15:
    """The task."""

    def __init__(self, data: Path, tokenizer: Path, text: Path, folder: Path) -> None:
        self._store, self._folder = Store(data), folder
        self._tokenizer = CLIPTokenizer.from_pretrained(tokenizer)
        self._text = CLIPTextModel.from_pretrained(text).eval()
        self._schedule = alphas()
        torch.manual_seed(0)
        self.model: nn.Module = new()
        lighten(self.model)

    def loss(self, done: float, dice: Dice) -> tuple[Tensor, int]:
        """See `Task`."""
        _, z, scenes = self._store.batch(LARGE if done >= LARGE_FROM else SMALL, BATCH_PIXELS, dice)
        captions = ["" if dice.own.random() < NO_CAPTION else caption(scene, dice.own) for scene in scenes]
        t = times(len(z), 0.5 - 0.3 * done, dice)
        with torch.no_grad():
            hidden = self._text(torch.tensor(encode(self._tokenizer, captions))).last_hidden_state
        return v_loss(lambda x: self.model(x, t, hidden).sample, z, t, self._schedule), len(z)

    def publish(self, average: UNet2DConditionModel) -> None:
        """See `Task`."""
        average.save_pretrained(self._folder)
