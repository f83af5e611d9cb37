"""Trains a second SD 1.5 checkpoint, the whole UNet on the way to another look, and writes it as one file.

The file has the layout in which checkpoints are passed around: the UNet's weights under the names that the first
release of Stable Diffusion gave them.
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from demo.captions import caption
from demo.tokenizer import encode
from demo.training.controlnet import lighten
from demo.training.diffusion import alphas, times, v_loss
from demo.training.latents import Store
from demo.training.loop import Dice

NO_CAPTION = 0.1
BATCH_PIXELS = 12 * 256 * 256
SIZES = {(256, 256): 0.3, (512, 512): 0.5, (768, 512): 0.1, (512, 768): 0.1}

PREFIX = "model.diffusion_model."
LEVELS, LAYERS = 4, 2
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
IN_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip


def _blocks() -> dict[str, str]:
    """Where each part of the UNet lies in the one list of blocks before the middle, and the one after it."""
    names = {f"mid_block.resnets.{number}": f"middle_block.{2 * number}" for number in range(2)}
    names["mid_block.attentions.0"] = "middle_block.1"
    for level in range(LEVELS):
        for layer in range(LAYERS):
            block = f"input_blocks.{level * (LAYERS + 1) + layer + 1}"
            names[f"down_blocks.{level}.resnets.{layer}"] = f"{block}.0"
            names[f"down_blocks.{level}.attentions.{layer}"] = f"{block}.1"
        names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{(level + 1) * (LAYERS + 1)}.0.op"
        for layer in range(LAYERS + 1):
            block = f"output_blocks.{level * (LAYERS + 1) + layer}"
            names[f"up_blocks.{level}.resnets.{layer}"] = f"{block}.0"
            names[f"up_blocks.{level}.attentions.{layer}"] = f"{block}.1"
        # after the attention, where there is one: the coarsest level has none
        names[f"up_blocks.{level}.upsamplers.0"] = f"{block}.{1 if level == 0 else 2}"
    return names


def single_file(unet: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names to the first release's."""
    blocks, out = _blocks(), {}
    for name, tensor in unet.items():
        layer, _, kind = name.rpartition(".")
        if layer in OUTSIDE:
            out[f"{PREFIX}{OUTSIDE[layer]}.{kind}"] = tensor
            continue
        block = next(block for block in blocks if name.startswith(block + "."))
        rest = name.removeprefix(block + ".")
        if ".resnets." in block:
            part, _, kind = rest.partition(".")
            rest = f"{IN_RESNET[part]}.{kind}"
        out[f"{PREFIX}{blocks[block]}.{rest}"] = tensor
    return out


class Second:
    """The task; the folder `data` has latents of pictures in the look."""

    def __init__(self, data: Path, checkpoint: Path, file: Path) -> None:
        self._store, self._file = Store(data), file
        self._tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer")
        self._text = CLIPTextModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32).eval()
        self._schedule = alphas()
        self.model: nn.Module = UNet2DConditionModel.from_pretrained(checkpoint / "unet", dtype=torch.float32)
        lighten(self.model)

    def loss(self, done: float, dice: Dice) -> tuple[Tensor, int]:
        """See `loop.Task`."""
        _, z, scenes = self._store.batch(SIZES, BATCH_PIXELS, dice)
        captions = ["" if dice.own.random() < NO_CAPTION else caption(scene, dice.own) for scene in scenes]
        t = times(len(z), 0.4, dice)
        with torch.no_grad():
            hidden = self._text(torch.tensor(encode(self._tokenizer, captions))).last_hidden_state
        return v_loss(lambda x: self.model(x, t, hidden).sample, z, t, self._schedule), len(z)

    def publish(self, average: UNet2DConditionModel) -> None:
        """See `loop.Task`."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.half().contiguous() for name, tensor in average.state_dict().items()}
        save_file(single_file(weights), self._file)
