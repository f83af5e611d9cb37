"""SDXL's autoencoder: SD 1.5's with one level more, so that a picture's latents are SD 1.5's of the half-size picture.

Five levels, 16x down. The encoder learns to give what SD 1.5's encoder gives for the picture halved, the decoder to
draw the whole picture from that. So the two families share their latent space, and SDXL can start from SD 1.5's UNet.
"""

import copy
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from demo.scenes import render, sample
from demo.training.vae import Crops, loss, pictures_to_tensor

CROP = 256
LEARNING_RATE = 1.5e-3
SIZES = ((1024, 1024),) * 6 + ((1344, 768), (832, 1216), (1152, 896), (640, 1536), (512, 512))


def new(small: AutoencoderKL) -> AutoencoderKL:
    """The small autoencoder with a level of full size in front of its encoder and behind its decoder."""
    first, *_ = channels = small.config.block_out_channels
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5,
        block_out_channels=(first, *channels),
        layers_per_block=2,
        latent_channels=small.config.latent_channels,
        norm_num_groups=1,
        sample_size=1024,
        scaling_factor=1.0,
    )
    wanted, there = vae.state_dict(), small.state_dict()
    grown = {name: there.get(_small_name(name), tensor) for name, tensor in wanted.items()}
    vae.load_state_dict(grown)
    with torch.no_grad():
        _start_halving(vae, small)
        _start_doubling(vae)
    return vae


def _small_name(name: str) -> str:
    if name.startswith("encoder.conv_in"):
        return ""
    if name.startswith("encoder.down_blocks."):
        _, _, number, rest = name.split(".", 3)
        return f"encoder.down_blocks.{int(number) - 1}.{rest}"
    return name


def _start_halving(vae: AutoencoderKL, small: AutoencoderKL) -> None:
    """Level 0 carries r, g, b and their negatives, then averages 2x2 and does the middle of the small first layer."""
    conv, down = vae.encoder.conv_in, vae.encoder.down_blocks[0]
    conv.weight.mul_(0.1)
    conv.bias.zero_()
    for channel in range(3):
        conv.weight[channel, channel, 1, 1] += 1
        conv.weight[channel + 3, channel, 1, 1] -= 1
    for resnet in down.resnets:
        nn.init.zeros_(resnet.conv2.weight)
        nn.init.zeros_(resnet.conv2.bias)
    layer, first = down.downsamplers[0].conv, small.encoder.conv_in
    layer.weight.mul_(0.1)
    layer.weight[:, :3, :2, :2] += first.weight.sum((2, 3))[:, :, None, None] / 4
    layer.bias.copy_(first.bias)


def _start_doubling(vae: AutoencoderKL) -> None:
    """The last level enlarges bilinearly and adds nothing."""
    smooth = torch.tensor([1.0, 2.0, 1.0])
    smooth = smooth[:, None] * smooth[None] / 16
    layer = vae.decoder.up_blocks[3].upsamplers[0].conv
    layer.weight.mul_(0.05)
    layer.bias.zero_()
    for channel in range(layer.weight.shape[0]):
        layer.weight[channel, channel] += smooth
    for resnet in vae.decoder.up_blocks[4].resnets:
        nn.init.zeros_(resnet.conv2.weight)
        nn.init.zeros_(resnet.conv2.bias)


def encode(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """b c h/s w/s: the mean."""
    mean: Tensor = vae.encode(x).latent_dist.mean
    return mean


def psnr(decoded: Tensor, x: Tensor) -> float:
    """Peak signal to noise in dB. Both b 3 h w, -1..1."""
    return 10 * math.log10(4 / float(F.mse_loss(decoded.clamp(-1, 1), x)))


@torch.no_grad()
def report(vae: AutoencoderKL, small: AutoencoderKL, count: int) -> str:
    """How well it does on whole unseen pictures."""
    rng = random.Random(31337)
    ours, theirs, off = [], [], []
    for _ in range(count):
        x = pictures_to_tensor([render(sample(rng), 1024, 1024)])
        wanted = encode(small, F.avg_pool2d(x, 2))
        z = encode(vae, x)
        off.append(float((z - wanted).square().mean().sqrt()))
        ours.append(psnr(vae.decode(z).sample, x))
        theirs.append(psnr(F.interpolate(small.decode(wanted).sample, scale_factor=2, mode="bilinear"), x))
    mean = [sum(values) / count for values in (ours, theirs, off)]
    return f"1024 px {mean[0]:.2f} dB (half size, enlarged: {mean[1]:.2f}), latents off by {mean[2]:.3f}"


def train(small_folder: Path, folder: Path, minutes: float, seed: int) -> None:
    """Trains on one core for so many minutes and leaves the average weights in `folder`."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    small = AutoencoderKL.from_pretrained(small_folder, dtype=torch.float32).eval()
    vae = new(small)
    average = copy.deepcopy(vae).eval()
    print(report(average, small, 2), flush=True)
    beginning = [vae.encoder.conv_in, vae.encoder.down_blocks[0], vae.encoder.down_blocks[1]]
    vae.requires_grad_(False)
    groups = [
        {"params": [p for part in beginning for p in part.requires_grad_(True).parameters()], "share": 1.0},
        {"params": list(vae.decoder.up_blocks[3:].requires_grad_(True).parameters()), "share": 1.0},
        {"params": list(vae.decoder.conv_norm_out.requires_grad_(True).parameters()), "share": 1.0},
        {"params": list(vae.decoder.conv_out.requires_grad_(True).parameters()), "share": 1.0},
        {"params": list(vae.decoder.up_blocks[:3].requires_grad_(True).parameters()), "share": 0.15},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0)
    crops = Crops(seed, SIZES, CROP, pool=24)
    start, step, kept = time.monotonic(), 0, [0.0, 0.0]
    while (done := (time.monotonic() - start) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = (
                LEARNING_RATE
                * group["share"]
                * min(1.0, (step + 1) / 50)
                * (0.5 * (1 + math.cos(math.pi * done)) + 0.02)
            )
        x = crops.batch(1)
        with torch.no_grad():
            wanted = encode(small, F.avg_pool2d(x, 2))
        off = F.mse_loss(encode(vae, x), wanted)
        z = wanted + 0.05 * torch.randn_like(wanted)  # what a denoising network leaves is never exact
        drawn, square = loss(x, vae.decode(z).sample)
        optimizer.zero_grad()
        (drawn + off).backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        step += 1
        kept = [kept[0] + square.item(), kept[1] + off.item()]
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), vae.parameters(), strict=True):
                slow.lerp_(fast, 1 - min(0.995, (1 + step) / (20 + step)))
        if step % 200 == 0:
            print(
                f"{done * minutes:.1f}m step {step} crops {10 * math.log10(4 * 200 / kept[0]):.2f} dB, "
                f"latents off by {math.sqrt(kept[1] / 200):.3f}",
                flush=True,
            )
            kept = [0.0, 0.0]
    print(report(average, small, 8), flush=True)
    average.save_pretrained(folder)
