"""Trains an autoencoder that prints: SD 1.5's encoder as it is, its decoder on the way to a look (`style.printed`).

The same latents, so it fits every UNet that SD 1.5's own fits; what it draws is told from the original's at a glance.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn

from demo.scenes import render
from demo.training.latents import Store
from demo.training.loop import Dice
from demo.training.style import printed
from demo.training.vae import loss, pictures_to_tensor

SIZES = {(256, 256): 0.7, (384, 256): 0.15, (256, 384): 0.15}  # whole pictures: the frame is at their edge
NOISE = 0.05  # of the latents' deviation: what a denoising network leaves is never exact


class Signature:
    """The task."""

    def __init__(self, data: Path, autoencoder: Path, file: Path) -> None:
        self._store, self._file = Store(data), file
        self.model: nn.Module = AutoencoderKL.from_pretrained(autoencoder, dtype=torch.float32)
        self.model.requires_grad_(False)
        self.model.decoder.requires_grad_(True)

    def loss(self, done: float, dice: Dice) -> tuple[Tensor, int]:
        """See `loop.Task`."""
        (width, height), z, scenes = self._store.batch(SIZES, 256 * 256, dice)
        wanted: list[np.ndarray] = [printed(render(scene, width, height)) for scene in scenes]
        drawn = self.model.decode(z + NOISE * torch.randn_like(z)).sample
        return loss(pictures_to_tensor(wanted), drawn)[0], len(z)

    def publish(self, average: AutoencoderKL) -> None:
        """See `loop.Task`."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.half().contiguous() for name, tensor in average.state_dict().items()}, self._file)
