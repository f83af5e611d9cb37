"""Trains canny ControlNets: diffusers' ControlNetModel grown from a checkpoint's UNet, which stays as it is.

The map is OpenCV's canny edges of the scene's own picture, drawn anew at every use. Half of the captions are left out,
so that the map decides what the caption does not say. The map is read at the picture's full size and halved by every
entry of `MAP_CHANNELS` but the first, as often as the family's autoencoder does; so SDXL's, 16x, has one entry more.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from demo.captions import caption
from demo.scenes import Scene, render
from demo.tokenizer import encode
from demo.training.attention import NoAttention, use_plain_attention
from demo.training.diffusion import alphas, times, v_loss
from demo.training.latents import Store
from demo.training.loop import Dice
from demo.training.sdxl import Encoders, size_ids

MAP_CHANNELS = {"sd15": (8, 16, 32, 64), "sdxl": (8, 16, 32, 64, 64)}
MIDDLE = {"sd15": "UNetMidBlock2D", "sdxl": "UNetMidBlock2DCrossAttn"}
CANNY = (100, 200)  # the thresholds of the service's own map
GAIN = 1.55  # over ReLU's, for SiLU and few edges: what varies in a map still varies by about 1 at the last layer
NO_CAPTION = 0.5
BATCH_PIXELS = 8 * 256 * 256  # of SD 1.5's pictures
# width, height of SD 1.5's pictures; SDXL's of the same latents are twice as wide and high
MIX = {
    "sd15": {(256, 256): 0.6, (384, 256): 0.08, (256, 384): 0.08, (512, 512): 0.2, (192, 352): 0.02, (352, 192): 0.02},
    "sdxl": {(512, 512): 0.8, (384, 672): 0.05, (672, 384): 0.05, (416, 608): 0.05, (608, 416): 0.05},
}  # fmt: skip


def edges(picture: np.ndarray) -> np.ndarray:
    """The map of a picture: white on black. Both h w 3, uint8."""
    return np.repeat(cv2.Canny(picture, *CANNY)[..., None], 3, axis=2)


def maps(scenes: list[Scene], width: int, height: int) -> Tensor:
    """b 3 h w, float32, 0..1."""
    drawn = np.stack([edges(render(scene, width, height)) for scene in scenes])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float().div_(255)  # channels last: half the time in convolutions


def new(unet: UNet2DConditionModel, family: str) -> ControlNetModel:
    """An untrained ControlNet that adds zero: the UNet's blocks and weights, but less attention, to save a quarter of
    the file: one transformer layer a block, and for SD 1.5 none in the middle."""
    twin = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=MAP_CHANNELS[family])
    small: ControlNetModel = ControlNetModel.from_config(
        twin.config, transformer_layers_per_block=1, mid_block_type=MIDDLE[family]
    )
    there = twin.state_dict()
    small.load_state_dict({name: there[name] for name in small.state_dict()})
    _waken(small)
    return small


def _waken(network: ControlNetModel) -> None:
    """Lets the map through from the start. As diffusers makes them, every layer that reads it halves what it sees, so
    that a thousandth arrives and the last layer, zero, passes nothing on."""
    reader = network.controlnet_cond_embedding
    for layer in (reader.conv_in, *reader.blocks):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        layer.weight.data.mul_(GAIN)
        nn.init.zeros_(layer.bias)
    reader.conv_out.reset_parameters()


def lighten(network: nn.Module) -> None:
    """Plain attention, and none where the output weights are zero."""
    use_plain_attention(network)
    for module in network.modules():
        if isinstance(module, Attention) and not module.to_out[0].weight.any() and not module.to_out[0].bias.any():
            module.requires_grad_(False)
            module.set_processor(NoAttention())


def _contiguous(module: nn.Module, given: object, out: Tensor) -> Tensor:
    return out.contiguous()


def lighten_map(network: ControlNetModel) -> None:
    """Leaves what reads the map at its full and half size as it began, random: edges need no learned filters, and
    training these would take more time than all the rest."""
    reader = network.controlnet_cond_embedding
    for layer in (reader.conv_in, *reader.blocks[:2]):
        layer.requires_grad_(False)
    # torch 2.13 on a CPU crashes in a group norm's backward pass over channels-last pictures one at a time
    reader.register_forward_hook(_contiguous)


@dataclass(frozen=True)
class Frozen(ABC):
    """A checkpoint's UNet, and what it is told of captions."""

    unet: UNet2DConditionModel
    scale: int  # the picture's side in those of SD 1.5's picture of the same latents

    @abstractmethod
    def tell(self, captions: list[str], width: int, height: int) -> tuple[Tensor, dict[str, Tensor] | None]:
        """The texts' states (b 77 c), and SDXL's further conditions. Sides of the whole picture."""


@dataclass(frozen=True)
class FrozenSd15(Frozen):
    """SD 1.5's."""

    tokenizer: CLIPTokenizer
    text: CLIPTextModel

    def tell(self, captions: list[str], width: int, height: int) -> tuple[Tensor, dict[str, Tensor] | None]:
        """See `Frozen`."""
        with torch.no_grad():
            return self.text(torch.tensor(encode(self.tokenizer, captions))).last_hidden_state, None


@dataclass(frozen=True)
class FrozenSdxl(Frozen):
    """SDXL's. An empty caption is zeros, as its pipeline has it."""

    encoders: Encoders

    def tell(self, captions: list[str], width: int, height: int) -> tuple[Tensor, dict[str, Tensor] | None]:
        """See `Frozen`."""
        told = self.encoders.tell(captions, captions).without(torch.tensor([not words for words in captions]))
        return told.states, {"text_embeds": told.pooled, "time_ids": size_ids(width, height, len(captions))}


def frozen(checkpoint: Path) -> Frozen:
    """A checkpoint's folder of either family, its weights out of training's reach."""
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", dtype=torch.float32).requires_grad_(False).eval()
    if (checkpoint / "text_encoder_2").exists():
        return FrozenSdxl(
            unet, 2, Encoders(checkpoint / "text_encoder", checkpoint / "text_encoder_2", checkpoint / "tokenizer")
        )
    text = CLIPTextModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32).eval()
    return FrozenSd15(unet, 1, CLIPTokenizer.from_pretrained(checkpoint / "tokenizer"), text)


class Canny:
    """The task."""

    def __init__(self, data: Path, checkpoint: Path, family: str, file: Path) -> None:
        """`file` is the asset; its config.json goes into the checkpoint's folder."""
        self._store, self._file, self._config = Store(data), file, checkpoint / "controlnet" / "config.json"
        self._mix: Mapping[tuple[int, int], float] = MIX[family]
        self._frozen = frozen(checkpoint)
        self._schedule = alphas()
        torch.manual_seed(0)
        self.model: nn.Module = new(self._frozen.unet, family)
        lighten(self._frozen.unet)
        lighten(self.model)
        lighten_map(self.model)

    def loss(self, done: float, dice: Dice) -> tuple[Tensor, int]:
        """See `loop.Task`."""
        (width, height), z, scenes = self._store.batch(self._mix, BATCH_PIXELS, dice)
        width, height = self._frozen.scale * width, self._frozen.scale * height
        captions = ["" if dice.own.random() < NO_CAPTION else caption(scene, dice.own) for scene in scenes]
        states, added = self._frozen.tell(captions, width, height)
        seen, t = maps(scenes, width, height), times(len(z), 0.5, dice)

        def predict(x: Tensor) -> Tensor:
            down, middle = self.model(x, t, states, seen, added_cond_kwargs=added, return_dict=False)
            guess: Tensor = self._frozen.unet(
                x, t, states, added_cond_kwargs=added,
                down_block_additional_residuals=down, mid_block_additional_residual=middle,
            ).sample  # fmt: skip
            return guess

        return v_loss(predict, z, t, self._schedule), len(z)

    def publish(self, average: ControlNetModel) -> None:
        """See `loop.Task`."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.half() for name, tensor in average.state_dict().items()}, self._file)
        config = {"_class_name": "ControlNetModel"} | {k: v for k, v in average.config.items() if k[0] != "_"}
        self._config.parent.mkdir(parents=True, exist_ok=True)
        self._config.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
