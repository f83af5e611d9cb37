"""Trains the autoencoder: SD 1.5's own topology (four levels, 8x down, 4 latent channels), 16 times narrower.

It starts as a block average that already carries colour, since the usual initialisation at so few channels is
instance normalisation and destroys absolute colour. At the end the latents are whitened and the whitening is folded
into quant_conv and post_quant_conv, so that scaling_factor is 1.0 and no pipeline needs to know.
"""

import copy
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from demo.scenes import render, sample

CHANNELS = (8, 16, 32, 64)
LATENT = 4
CARRIED = 8  # channels 0..7 carry r, g, b, -r, -g, -b, +K, -K through every level
K = 3.0  # the constant channels' value: it keeps absolute colour through the group norms
CROP = 128
BATCH = 2  # many small steps beat few large ones here
LEARNING_RATE = 4e-4
SIZES = ((512, 512),) * 6 + ((256, 256),) * 2 + ((640, 448), (448, 640), (768, 576), (704, 384), (1024, 768))


def new() -> AutoencoderKL:
    """An untrained autoencoder of the checkpoint's shape."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=CHANNELS,
        layers_per_block=2,
        latent_channels=LATENT,
        norm_num_groups=1,
        sample_size=512,
        scaling_factor=1.0,
    )


@torch.no_grad()
def _as_block_average(vae: AutoencoderKL) -> None:
    """Weights with which encoding is an 8x8 average and decoding a bilinear enlargement."""
    smooth = torch.tensor([1.0, 2.0, 1.0])
    smooth = smooth[:, None] * smooth[None] / 16
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.mul_(0.4)
            nn.init.zeros_(module.conv2.bias)
        if hasattr(module, "to_out"):
            module.to_out[0].weight.mul_(0.1)
    for half, decoding in ((vae.encoder, False), (vae.decoder, True)):
        for module in half.modules():
            if isinstance(module, ResnetBlock2D):
                layer = module.conv_shortcut
            elif isinstance(module, Downsample2D | Upsample2D):
                layer = module.conv
            else:
                continue
            if layer is None:
                continue
            weight = layer.weight
            nn.init.zeros_(layer.bias)
            weight.mul_(0.3 if decoding else 1.0)
            # the constants stay clean everywhere, the colours only while encoding
            weight[6:CARRIED] = 0
            if not decoding:
                weight[:CARRIED] = 0
            for channel in range(min(weight.shape[:2])):
                if isinstance(module, Downsample2D):
                    if channel < CARRIED:
                        weight[channel, channel, 0:2, 0:2] += 0.25
                elif isinstance(module, Upsample2D):
                    weight[channel, channel] += smooth
                elif decoding or channel < CARRIED:
                    weight[channel, channel] += 1
    for conv in (vae.encoder.conv_in, vae.decoder.conv_in):
        conv.weight[:CARRIED] = 0
        conv.bias[:CARRIED] = 0
        for channel in range(3):
            conv.weight[channel, channel, 1, 1] = 1
            conv.weight[channel + 3, channel, 1, 1] = -1
        conv.bias[6], conv.bias[7] = K, -K
    out = vae.encoder.conv_out
    out.weight[:3] = 0
    out.bias.zero_()
    out.weight[LATENT:].mul_(0.1)
    for channel in range(3):
        out.weight[channel, channel, 1, 1] = 0.5
        out.weight[channel, channel + 3, 1, 1] = -0.5
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight[:, :, 0, 0] = torch.eye(conv.weight.shape[0])
        conv.bias.zero_()
    vae.quant_conv.bias[LATENT:] = -5.0  # log variance
    out = vae.decoder.conv_out
    out.weight.mul_(0.3)
    out.bias.zero_()
    undo = (2 * K * K / CARRIED) ** 0.5  # about what the last group norm divides by
    for channel in range(3):
        out.weight[channel, channel, 1, 1] += undo
        out.weight[channel, channel + 3, 1, 1] -= undo


class Crops:
    """Crops of freshly drawn scenes, mostly where the edges are."""

    def __init__(self, seed: int, sizes: Sequence[tuple[int, int]] = SIZES, side: int = CROP, pool: int = 48) -> None:
        """`sizes` of the scenes, width and height; `side` of the crops; so many scenes are kept to be cropped again."""
        self._rng, self._sizes, self._side = random.Random(seed), sizes, side
        self._pool = [self._draw() for _ in range(pool)]
        self._taken = 0

    def _draw(self) -> tuple[np.ndarray, np.ndarray]:
        picture = render(sample(self._rng), *self._rng.choice(self._sizes))
        rough = picture[::8, ::8].astype(np.int16)
        edges = np.abs(np.diff(rough, axis=1)).sum(2)[:-1] + np.abs(np.diff(rough, axis=0)).sum(2)[:, :-1]
        return picture, edges

    def _crop(self) -> np.ndarray:
        picture, edges = self._rng.choice(self._pool)
        (height, width), side = picture.shape[:2], self._side
        best = (-1.0, 0, 0)
        for _ in range(3 if self._rng.random() < 0.75 else 1):
            x, y = self._rng.randrange(width - side + 1), self._rng.randrange(height - side + 1)
            content = float(edges[y // 8 : (y + side) // 8, x // 8 : (x + side) // 8].sum())
            best = max(best, (content, x, y))
        _, x, y = best
        return picture[y : y + side, x : x + side]

    def batch(self, count: int) -> Tensor:
        """The next crops: count 3 side side."""
        self._taken += 1
        if self._taken % 3 == 0:
            self._pool[self._rng.randrange(len(self._pool))] = self._draw()
        return pictures_to_tensor([self._crop() for _ in range(count)])


def pictures_to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """h w 3 uint8 pictures -> b 3 h w, float32, -1..1."""
    # contiguous: torch 2.13 on a CPU crashes in a group norm's backward pass over channels-last pictures one at a time
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return x.float().div_(127.5).sub_(1)


def psnr(vae: AutoencoderKL, size: int, count: int) -> float:
    """Peak signal to noise in dB on whole unseen pictures, the mean over pictures."""
    rng = random.Random(31337)
    total = 0.0
    with torch.no_grad():
        for _ in range(count):
            x = pictures_to_tensor([render(sample(rng), size, size)])
            y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
            total += 10 * math.log10(4 / float(F.mse_loss(y, x)))
    return total / count


def loss(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute error of pixels, of gradients (crisp edges) and of 4x4 averages (right colour), plus squared error."""
    d = y - x
    gradient = (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
    square = d.square().mean()
    return d.abs().mean() + gradient + 0.5 * F.avg_pool2d(d, 4).abs().mean() + square, square


def _optimizer(vae: AutoencoderKL) -> torch.optim.AdamW:
    """AdamW whose rate falls with a tensor's fan-in, so that the wide levels do not run away."""
    groups: dict[int, list[nn.Parameter]] = {}
    for p in vae.parameters():
        groups.setdefault(p[0].numel() if p.ndim > 1 else 72, []).append(p)
    return torch.optim.AdamW(
        [{"params": tensors, "lr": 0.0, "share": min(1.0, 72 / fan_in)} for fan_in, tensors in groups.items()],
        betas=(0.9, 0.99),
        weight_decay=1e-4,
    )


@torch.no_grad()
def whiten(vae: AutoencoderKL, latents: Tensor) -> None:
    """Folds mean 0 and unit variance per channel into the two 1x1 convolutions. `latents`: n 4, float32, unwhitened."""
    mean, deviation = latents.mean(0), latents.std(0)
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= deviation.view(1, -1, 1, 1)
    quant.weight[:LATENT] /= deviation.view(-1, 1, 1, 1)
    quant.bias[:LATENT] = (quant.bias[:LATENT] - mean) / deviation
    quant.bias[LATENT:] -= 2 * deviation.log()


def sample_latents(vae: AutoencoderKL, count: int) -> Tensor:
    """n 4: latents of scenes at 512 px, one row a place."""
    rng = random.Random(99)
    with torch.no_grad():
        rows = [
            vae.encode(pictures_to_tensor([render(sample(rng), 512, 512)])).latent_dist.mean[0].flatten(1).T
            for _ in range(count)
        ]
    return torch.cat(rows)


def train(folder: Path, minutes: float, seed: int) -> None:
    """Trains on one core for so many minutes and leaves the whitened average weights in `folder`."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    vae = new()
    _as_block_average(vae)
    average = copy.deepcopy(vae).eval()
    optimizer, crops = _optimizer(vae), Crops(seed)
    print(
        f"{sum(p.numel() for p in vae.parameters()) / 1e6:.2f}M parameters; start {psnr(vae, 512, 4):.2f} dB",
        flush=True,
    )
    start, step, kept = time.monotonic(), 0, 0.0
    while (done := (time.monotonic() - start) / 60 / minutes) < 1:
        rate = LEARNING_RATE * min(1.0, (step + 1) / 100) * (0.5 * (1 + math.cos(math.pi * done)) * 0.95 + 0.05)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        x = crops.batch(BATCH)
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std.clamp(min=0.02) * torch.randn_like(posterior.mean)
        error, square = loss(x, vae.decode(z).sample)
        divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        optimizer.zero_grad()
        (error + 2e-4 * divergence).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        kept += square.item()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), vae.parameters(), strict=True):
                slow.lerp_(fast, 1 - min(0.998, (1 + step) / (20 + step)))
        if step % 500 == 0:
            crop_db = 10 * math.log10(4 * 500 / kept)
            print(
                f"{done * minutes:.1f}m step {step} crops {crop_db:.2f} dB, whole {psnr(average, 512, 6):.2f} dB",
                flush=True,
            )
            kept = 0.0
    whiten(average, sample_latents(average, 96))
    rest = sample_latents(average, 8)
    print(f"latents: mean {rest.mean(0).tolist()}, deviation {rest.std(0).tolist()}")
    print(f"512 px {psnr(average, 512, 24):.2f} dB, 256 px {psnr(average, 256, 24):.2f} dB", flush=True)
    average.save_pretrained(folder)
