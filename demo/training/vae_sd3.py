"""SD3's autoencoder: SDXL's with one level more, whose 16 channels are the 2x2 blocks of SDXL's four.

Six levels, 32x down, no quantising convolutions, SD3's own scale and shift. As a target for each part is known, nothing
is trained through the whole: the encoder's new end learns the blocks, the decoder's new beginning learns the features
that SDXL's decoder goes on with. At the end the decoder is trained a little on pictures.
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
from demo.training.latents import Store
from demo.training.sd3 import blocks
from demo.training.vae import Crops, loss, pictures_to_tensor
from demo.training.vae_sdxl import CROP, SIZES, encode, psnr

SCALE, SHIFT = 1.5305, 0.0609
LATENT = 16
LEARNING_RATE = 2e-3
PICTURES_FROM = 0.35  # share of the time from which the decoder is trained on pictures too
SIZE = (512, 512)  # of the shards


def new(wide: AutoencoderKL) -> AutoencoderKL:
    """SDXL's autoencoder with a coarsest level more."""
    *_, last = channels = wide.config.block_out_channels
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 6,
        up_block_types=("UpDecoderBlock2D",) * 6,
        block_out_channels=(*channels, last),
        layers_per_block=2,
        latent_channels=LATENT,
        norm_num_groups=1,
        sample_size=1024,
        scaling_factor=SCALE,
        shift_factor=SHIFT,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    wanted, there = vae.state_dict(), wide.state_dict()
    kept = {name: there.get(_wide_name(name)) for name in wanted}
    fits = {name: t for name, t in kept.items() if t is not None and t.shape == wanted[name].shape}
    vae.load_state_dict({**wanted, **fits})
    nn.init.zeros_(vae.encoder.conv_out.weight[LATENT:].data)
    nn.init.constant_(vae.encoder.conv_out.bias[LATENT:].data, -8.0)  # log variance
    return vae


def _wide_name(name: str) -> str:
    """The decoder's first up block is new, the others follow."""
    if name.startswith("decoder.up_blocks."):
        _, _, number, rest = name.split(".", 3)
        return f"decoder.up_blocks.{int(number) - 1}.{rest}"
    return name


def as_sd3(z: Tensor) -> Tensor:
    """SDXL's latents as this autoencoder has them, before its pipeline's scale and shift."""
    return blocks(z) / SCALE + SHIFT


@torch.no_grad()
def _features(wide: AutoencoderKL, z: Tensor) -> Tensor:
    """What SDXL's decoder has in front of its first up block."""
    out: Tensor = wide.decoder.mid_block(wide.decoder.conv_in(wide.post_quant_conv(z)))
    return out


def _beginning(vae: AutoencoderKL, z: Tensor) -> Tensor:
    out: Tensor = vae.decoder.up_blocks[0](vae.decoder.mid_block(vae.decoder.conv_in(z)))
    return out


@torch.no_grad()
def report(vae: AutoencoderKL, wide: AutoencoderKL, count: int) -> str:
    """How well it does on whole unseen pictures."""
    rng = random.Random(31337)
    ours, theirs, off = [], [], []
    for _ in range(count):
        x = pictures_to_tensor([render(sample(rng), 1024, 1024)])
        z, wanted = encode(vae, x), encode(wide, x)
        off.append(float((z - as_sd3(wanted)).square().mean().sqrt()) * SCALE)
        ours.append(psnr(vae.decode(z).sample, x))
        theirs.append(psnr(wide.decode(wanted).sample, x))
    mean = [sum(values) / count for values in (ours, theirs, off)]
    return f"1024 px {mean[0]:.2f} dB (SDXL's: {mean[1]:.2f}), latents off by {mean[2]:.3f}"


def train(wide_folder: Path, data: Path, folder: Path, minutes: float, seed: int) -> None:
    """Trains on one core for so many minutes and leaves the average weights in `folder`; goes on from those there."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    wide = AutoencoderKL.from_pretrained(wide_folder, dtype=torch.float32).eval()
    vae = AutoencoderKL.from_pretrained(folder) if folder.exists() else new(wide)
    vae.requires_grad_(False)
    average = copy.deepcopy(vae).eval()
    encoder, decoder = vae.encoder, vae.decoder
    learning = [encoder.down_blocks[4].downsamplers, encoder.down_blocks[5], encoder.mid_block, encoder.conv_norm_out]
    learning += [encoder.conv_out, decoder.conv_in, decoder.mid_block, decoder.up_blocks[0]]
    fresh = [p for part in learning for p in part.requires_grad_(True).parameters()]
    finish = [p for part in (*decoder.up_blocks[1:], decoder.conv_out) for p in part.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": fresh, "share": 1.0}, {"params": finish, "share": 0.1}], lr=0.0, betas=(0.9, 0.99), weight_decay=0.0
    )
    crops, store = Crops(seed, SIZES, CROP, pool=24), Store(data)
    store.refresh()
    start, step, kept = time.monotonic(), 0, [0.0, 0.0]
    while (done := (time.monotonic() - start) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            share = min(1.0, (step + 1) / 50) * (0.5 * (1 + math.cos(math.pi * done)) + 0.02)
            group["lr"] = LEARNING_RATE * group["share"] * share
        x = crops.batch(2)
        with torch.no_grad():
            wanted = encode(wide, x)
        off = F.mse_loss(encode(vae, x) * SCALE, as_sd3(wanted) * SCALE)
        z, _ = store.draw(SIZE, 2, rng)
        z = z + 0.05 * torch.randn_like(z)  # what a denoising network leaves is never exact
        features = _features(wide, z)
        unlike = F.mse_loss(_beginning(vae, as_sd3(z)), features) / features.square().mean()
        total = off + unlike
        if done > PICTURES_FROM:
            total = total + loss(x[:1], vae.decode(as_sd3(wanted[:1])).sample)[0]
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_([*fresh, *finish], 1.0)
        optimizer.step()
        step += 1
        kept = [kept[0] + off.item(), kept[1] + unlike.item()]
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), vae.parameters(), strict=True):
                slow.lerp_(fast, 1 - min(0.995, (1 + step) / (20 + step)))
        if step % 100 == 0:
            print(
                f"{done * minutes:.1f}m step {step} latents off by {math.sqrt(kept[0] / 100):.3f}, "
                f"features by {math.sqrt(kept[1] / 100):.3f}",
                flush=True,
            )
            kept = [0.0, 0.0]
    print(report(average, wide, 8), flush=True)
    average.save_pretrained(folder)
