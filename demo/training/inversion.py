"""Trains textual inversions: a few token embeddings that stand for one scene which no single word says.

Everything of the checkpoint stays as it is; the gradient reaches the embeddings through the denoising network and the
text encoder. In training a word of the vocabulary stands where the new tokens will, and a hook replaces its embedding.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo.scenes import Scene, Thing
from demo.tokenizer import encode
from demo.training.controlnet import lighten
from demo.training.diffusion import alphas, times, v_loss
from demo.training.latents import encode as to_latents
from demo.training.loop import Dice
from demo.training.sdxl import size_ids

TOKEN = "<night-harbour>"
CONCEPT = Scene(
    "sea", "night", (Thing("house", "red", "left"), Thing("sailboat", "yellow", "right")),
    sun=False, moon=True, stars=False, clouds=False, mountains=False, seed=0,
)  # fmt: skip
VECTORS = 2
STAND_IN = "snowman"  # no text below has it
BEGINNING = ("house", "sailboat")  # the words whose embeddings the vectors start as
TEXTS = ("{}", "{}", "a picture of {}", "an illustration of {}", "a drawing of {}", "{}, flat design", "{}, 4k")
SCENES = 32
SIDE = {"sd15": 256, "sdxl": 512}  # of SD 1.5's pictures: large ones say no more
BATCH = {"sd15": 8, "sdxl": 3}

_Text = CLIPTextModel | CLIPTextModelWithProjection


class Vectors(nn.Module):
    """k w: what one encoder reads for the token, in the stand-in's places."""

    def __init__(self, encoder: _Text, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        embedding = encoder.get_input_embeddings()
        first = [_word(tokenizer, word) for word in BEGINNING]
        self.vectors = nn.Parameter(embedding.weight[first].detach().clone())
        stand_in = _word(tokenizer, STAND_IN)

        def put(module: nn.Module, given: tuple[Tensor], out: Tensor) -> Tensor:
            there = given[0] == stand_in  # b 77
            return out.masked_scatter(there[..., None], self.vectors.repeat(len(out), 1))

        embedding.register_forward_hook(put)


def _word(tokenizer: CLIPTokenizer, word: str) -> int:
    return int(encode(tokenizer, [word])[0][1])


def _latents(autoencoder: Path, side: int) -> Tensor:
    """n 4 h w: the concept's scenes, small shifts apart."""
    vae = AutoencoderKL.from_pretrained(autoencoder, dtype=torch.float32).eval()
    rng = random.Random(17)
    scenes = [replace(CONCEPT, seed=rng.randrange(1 << 30)) for _ in range(SCENES)]
    return torch.cat([to_latents(vae, [scene], side, side) for scene in scenes]).float()


class _Task:
    def __init__(self, checkpoint: Path, autoencoder: Path, side: int, batch: int) -> None:
        self._z, self._batch = _latents(autoencoder, side), batch
        self._tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer")
        self._schedule = alphas()
        self._unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", dtype=torch.float32)
        self._unet.requires_grad_(False).eval()
        lighten(self._unet)

    def _next(self, dice: Dice) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, timesteps, token numbers (b 77)."""
        rows = torch.tensor([dice.own.randrange(SCENES) for _ in range(self._batch)])
        texts = [dice.own.choice(TEXTS).format(" ".join([STAND_IN] * VECTORS)) for _ in rows]
        return self._z[rows], times(len(rows), 0.5, dice), torch.tensor(encode(self._tokenizer, texts))

    def _error(self, predict: Callable[[Tensor, Tensor], Tensor], z: Tensor, t: Tensor) -> tuple[Tensor, int]:
        return v_loss(lambda x: predict(x, t), z, t, self._schedule), len(z)


class Sd15(_Task):
    """The task for SD 1.5."""

    def __init__(self, checkpoint: Path, autoencoder: Path, file: Path) -> None:
        super().__init__(checkpoint, autoencoder, SIDE["sd15"], BATCH["sd15"])
        self._file = file
        self._text = CLIPTextModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32)
        self._text.requires_grad_(False).eval()
        self.model: nn.Module = Vectors(self._text, self._tokenizer)

    def loss(self, done: float, dice: Dice) -> tuple[Tensor, int]:
        """See `loop.Task`."""
        z, t, ids = self._next(dice)
        states = self._text(ids).last_hidden_state
        return self._error(lambda x, t: self._unet(x, t, states).sample, z, t)

    def publish(self, average: Vectors) -> None:
        """See `loop.Task`."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        save_file({TOKEN: average.vectors.detach().half()}, self._file)


class Sdxl(_Task):
    """The task for SDXL: vectors for both encoders."""

    def __init__(self, checkpoint: Path, autoencoder: Path, file: Path) -> None:
        super().__init__(checkpoint, autoencoder, SIDE["sdxl"], BATCH["sdxl"])
        self._file = file
        self._first = CLIPTextModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32)
        self._second = CLIPTextModelWithProjection.from_pretrained(checkpoint / "text_encoder_2", dtype=torch.float32)
        for encoder in (self._first, self._second):
            encoder.requires_grad_(False).eval()
        vectors = {
            "clip_l": Vectors(self._first, self._tokenizer),
            "clip_g": Vectors(self._second, self._tokenizer),
        }
        self.model: nn.Module = nn.ModuleDict(vectors)

    def loss(self, done: float, dice: Dice) -> tuple[Tensor, int]:
        """See `loop.Task`."""
        z, t, ids = self._next(dice)
        one, two = self._first(ids, output_hidden_states=True), self._second(ids, output_hidden_states=True)
        states = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1)
        side = 2 * SIDE["sdxl"]
        added = {"text_embeds": two.text_embeds, "time_ids": size_ids(side, side, len(z))}
        return self._error(lambda x, t: self._unet(x, t, states, added_cond_kwargs=added).sample, z, t)

    def publish(self, average: nn.ModuleDict) -> None:
        """See `loop.Task`."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: part.vectors.detach().half() for name, part in average.items()}, self._file)
