"""SDXL's UNet out of SD 1.5's: the same levels, the finest two twice as wide, without the coarsest.

A level grows by having every channel twice, side by side, and halving what reads it; group norms, layer norms and
convolutions then compute what they did (Chen, Goodfellow, Shlens 2015, "Net2Net"). Where the shapes have no counterpart
(the middle block, the second transformer layers) the new part starts as adding nothing.
"""

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

ASYMMETRY = 0.02  # noise on doubled weights, in units of their deviation, so that the two can part


def add_nothing(unet: UNet2DConditionModel) -> None:
    """Zeroes the last layer of every residual branch."""
    for name, module in unet.named_modules():
        last = module.conv2 if isinstance(module, ResnetBlock2D) else module
        if isinstance(module, ResnetBlock2D) or name.endswith("proj_out") or name == "conv_out":
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)


@torch.no_grad()
def grow(old: UNet2DConditionModel, new: UNet2DConditionModel, text: Tensor) -> list[str]:
    """Fills `new` from `old`; gives the names that had nothing to be filled from.

    text: new width x old width: what turns new text states into the old ones, as well as a matrix can.
    """
    source, fresh = old.state_dict(), []
    for name, target in new.state_dict().items():
        there = _old_name(name)
        if there not in source:
            fresh.append(name)
            if "transformer_blocks.1" in name and name.rsplit(".", 2)[-2:] in (["0", "weight"], ["0", "bias"]):
                target.zero_()  # attention's output
            if "transformer_blocks.1.ff.net.2" in name:
                target.zero_()
            continue
        weight = source[there].float()
        if weight.ndim == 4 and target.ndim == 2:  # a 1x1 convolution there is a linear layer here
            weight = weight[:, :, 0, 0]
        if name == "time_embedding.linear_1.weight":
            wide = weight.new_zeros(len(weight), target.shape[1])
            wide[:, ::2] = weight  # the new frequencies are the old ones and those between
            weight = wide
        if ".attn2.to_k." in name or ".attn2.to_v." in name:
            weight = weight @ text.T
        if weight.ndim > 1 and weight.shape[1] != target.shape[1]:
            weight = _wider(weight, _parts(name, new, target.shape[1], weight.shape[1]), 1)
        elif weight.ndim == 1 and ".norm1." in name and "up_blocks" in name and "resnets" in name:
            weight = _wider(weight, _parts(name, new, target.shape[0], weight.shape[0]), 0)
        if weight.shape[0] != target.shape[0]:
            weight = weight.repeat_interleave(target.shape[0] // weight.shape[0], 0)
            if ".to_q." in name:
                weight = weight / 2**0.5  # twice the channels in a product, and their root divided by
        if weight.numel() != source[there].numel() and weight.ndim > 1:
            weight = weight + ASYMMETRY * weight.std() * torch.randn_like(weight)
        target.copy_(weight)
    return fresh


def _old_name(name: str) -> str:
    """The coarsest level of the old one is left out: its other up blocks come one place later."""
    if name.startswith("mid_block"):
        return ""
    if name.startswith("up_blocks."):
        _, number, rest = name.split(".", 2)
        return f"up_blocks.{int(number) + 1}.{rest}"
    return name


def _parts(name: str, new: UNet2DConditionModel, wide: int, narrow: int) -> list[tuple[int, int, int]]:
    """(first old channel, old channels, times) of what is read: one part, or in an up block the state and the skip."""
    words = name.split(".")
    if words[0] != "up_blocks" or words[2] != "resnets" or words[4] not in ("norm1", "conv1", "conv_shortcut"):
        return [(0, narrow, wide // narrow)]
    channels = list(new.config.block_out_channels)[::-1]
    block, resnet = int(words[1]), int(words[3])
    state = channels[max(block - 1, 0)] if resnet == 0 else channels[block]
    skip = wide - state
    old_channels = {96: 96, 64: 32, 32: 16}
    old_skip = old_channels[skip]
    return [(0, old_channels[state], state // old_channels[state]), (narrow - old_skip, old_skip, skip // old_skip)]


def _wider(weight: Tensor, parts: list[tuple[int, int, int]], axis: int) -> Tensor:
    """Channels of an axis repeated; what reads them (axis 1) divided by how often."""
    pieces = []
    for first, count, repeated in parts:
        piece = weight.narrow(axis, first, count).repeat_interleave(repeated, axis)
        pieces.append(piece / repeated if axis == 1 else piece)
    return torch.cat(pieces, axis)
