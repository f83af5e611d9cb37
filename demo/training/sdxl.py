"""Trains the SDXL base: SDXL's own blocks, narrower, v-prediction, grown from the SD 1.5 checkpoint.

Its autoencoder's latents of a picture are SD 1.5's latents of the picture at half the size (`vae_sdxl.py`), so it
starts from what SD 1.5 knows and trains on the same shards.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo.captions import caption
from demo.scenes import Scene, sample
from demo.tokenizer import encode
from demo.training.attention import use_plain_attention
from demo.training.diffusion import alphas, times, v_loss
from demo.training.grow import add_nothing, grow
from demo.training.latents import Store
from demo.training.loop import Dice

CHANNELS = (32, 64, 96)
WIDTH = 128  # of each text encoder
ID_WIDTH = 16  # channels a number of the size conditioning is spread over
BATCH_PIXELS = 12 * 512 * 512  # of the half-size pictures, a step and process
NO_CAPTION = 0.1
# width, height of the half-size pictures
MIX = {
    (512, 512): 0.6, (768, 320): 0.05, (384, 672): 0.05, (416, 608): 0.05, (672, 384): 0.05, (576, 448): 0.05,
    (320, 768): 0.05, (608, 416): 0.05, (448, 576): 0.05,
}  # fmt: skip


def new() -> UNet2DConditionModel:
    """An untrained UNet of SDXL's blocks whose residual branches add nothing."""
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 1, 3),
        norm_num_groups=4,
        cross_attention_dim=2 * WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=ID_WIDTH,
        projection_class_embeddings_input_dim=WIDTH + 6 * ID_WIDTH,
    )
    add_nothing(unet)
    nn.init.zeros_(unet.add_embedding.linear_2.weight)
    nn.init.zeros_(unet.add_embedding.linear_2.bias)
    return unet


@dataclass(frozen=True)
class Told:
    """What the network is told of a batch of texts. All float32."""

    states: Tensor  # b 77 256
    pooled: Tensor  # b 128

    def without(self, rows: Tensor) -> "Told":
        """Nothing said in the rows where `rows` (b, bool) is true: zeros, as SDXL's own pipeline has it."""
        keep = (~rows).float()
        return Told(self.states * keep.view(-1, 1, 1), self.pooled * keep.view(-1, 1))


class Encoders:
    """Both text encoders, frozen."""

    def __init__(self, first: Path, second: Path, tokenizer: Path) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(tokenizer)
        self.first = CLIPTextModel.from_pretrained(first, dtype=torch.float32).eval()
        self.second = CLIPTextModelWithProjection.from_pretrained(second, dtype=torch.float32).eval()

    @torch.no_grad()
    def tell(self, texts: list[str], texts_2: list[str]) -> Told:
        """Both encoders' states before their last layer, and the second one's pooled state."""
        one = self.first(torch.tensor(encode(self.tokenizer, texts)), output_hidden_states=True)
        two = self.second(torch.tensor(encode(self.tokenizer, texts_2)), output_hidden_states=True)
        return Told(torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1), two.text_embeds)

    @torch.no_grad()
    def as_sd15(self, count: int) -> Tensor:
        """256 x 128: the matrix that comes nearest to turning the states here into SD 1.5's."""
        rng = random.Random(0)
        texts = [caption(sample(rng), rng) for _ in range(count)]
        ids = torch.tensor(encode(self.tokenizer, texts))
        here = self.tell(texts, texts).states.flatten(0, 1)
        there = self.first(ids).last_hidden_state.flatten(0, 1)
        return torch.linalg.lstsq(here, there, driver="gelsd").solution


def said(encoders: Encoders, scenes: list[Scene], dice: Dice) -> Told:
    """Captions of scenes, now and then one for each encoder, now and then none: empty, or zeros."""
    texts = [caption(scene, dice.own) for scene in scenes]
    others = [
        caption(scene, dice.own) if dice.own.random() < 0.3 else text for scene, text in zip(scenes, texts, strict=True)
    ]
    empty = [dice.own.random() < NO_CAPTION for _ in scenes]
    silent = [e and dice.own.random() < 0.6 for e in empty]

    def unless_empty(lines: list[str]) -> list[str]:
        return ["" if e else line for line, e in zip(lines, empty, strict=True)]

    return encoders.tell(unless_empty(texts), unless_empty(others)).without(torch.tensor(silent))


def size_ids(width: int, height: int, rows: int) -> Tensor:
    """rows 6: original size, crop and target size of an uncropped picture, in the pixels of the whole picture."""
    return torch.tensor([[height, width, 0, 0, height, width]] * rows, dtype=torch.float32)


class Base:
    """The task."""

    def __init__(self, data: Path, encoders: Encoders, sd15: Path, folder: Path) -> None:
        self._store, self._encoders, self._folder = Store(data), encoders, folder
        self._schedule = alphas()
        torch.manual_seed(0)
        old = UNet2DConditionModel.from_pretrained(sd15, dtype=torch.float32)
        self.model: nn.Module = new()
        print(len(grow(old, self.model, encoders.as_sd15(64))), "tensors start from nothing", flush=True)
        use_plain_attention(self.model)

    def loss(self, done: float, dice: Dice) -> tuple[Tensor, int]:
        """See `Task`."""
        (width, height), z, scenes = self._store.batch(MIX, BATCH_PIXELS, dice)
        told = said(self._encoders, scenes, dice)
        t = times(len(z), 0.4 - 0.2 * done, dice)
        added = {"text_embeds": told.pooled, "time_ids": size_ids(2 * width, 2 * height, len(z))}

        def predict(x: Tensor) -> Tensor:
            guess: Tensor = self.model(x, t, told.states, added_cond_kwargs=added).sample
            return guess

        return v_loss(predict, z, t, self._schedule), len(z)

    def publish(self, average: UNet2DConditionModel) -> None:
        """See `Task`."""
        average.save_pretrained(self._folder)
