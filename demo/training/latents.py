"""Scenes encoded ahead of training, in shards: latents of one size beside the scenes they show.

Captions are written anew at every use, so only the scene is kept. A reader takes in shards as they appear.
"""

import os
import pickle
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from demo.scenes import Scene, render, sample
from demo.training.loop import Dice
from demo.training.vae import pictures_to_tensor

SHARD = 200  # scenes a file
REFRESH = 100  # batches between looks for new shards

Draw = Callable[[Scene, int, int], np.ndarray]  # a scene's picture of a width and height: h w 3, uint8


def encode(vae: AutoencoderKL, scenes: list[Scene], width: int, height: int, draw: Draw = render) -> Tensor:
    """b 4 h/8 w/8, float16, unit variance. bfloat16 costs an error of 0.01 and saves half the time."""
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        pictures = pictures_to_tensor([draw(scene, width, height) for scene in scenes])
        return vae.encode(pictures).latent_dist.mean.half()


def write(vae_folder: Path, folder: Path, width: int, height: int, count: int, seed: int, draw: Draw = render) -> None:
    """Encodes `count` scenes of one size on one core; shards that are there already are kept."""
    torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(vae_folder).eval()
    where = folder / f"{width}x{height}"
    where.mkdir(parents=True, exist_ok=True)
    for number in range((count + SHARD - 1) // SHARD):
        file = where / f"{seed}-{number:04d}.pkl"
        if file.exists():
            continue
        rng = random.Random(f"{seed} {width}x{height} {number}")
        scenes = [sample(rng) for _ in range(SHARD)]
        few = max(1, 8 * 256 * 256 // (width * height))
        z = torch.cat([encode(vae, scenes[start : start + few], width, height, draw) for start in range(0, SHARD, few)])
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_bytes(pickle.dumps((z.numpy(), scenes)))
        partial.rename(file)


@dataclass
class _Bucket:
    latents: list[np.ndarray]  # shards of n 4 h w, float16
    scenes: list[list[Scene]]


class Store:
    """All shards of a folder, by size in pixels (width, height)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: set[Path] = set()
        self._buckets: dict[tuple[int, int], _Bucket] = {}
        self._batches = 0

    def refresh(self) -> None:
        """Takes in the shards written since the last time."""
        for file in sorted(self._folder.glob("*x*/*.pkl")):
            if file in self._read:
                continue
            self._read.add(file)
            width, height = file.parent.name.split("x")
            z, scenes = pickle.loads(file.read_bytes())
            bucket = self._buckets.setdefault((int(width), int(height)), _Bucket([], []))
            bucket.latents.append(z)
            bucket.scenes.append(scenes)

    def choose(self, mix: Mapping[tuple[int, int], float], rng: random.Random) -> tuple[int, int]:
        """One of the sizes that are there, by their shares in `mix`."""
        there = {size: share for size, share in mix.items() if size in self._buckets}
        return rng.choices(list(there), list(there.values()))[0]

    def batch(
        self, mix: Mapping[tuple[int, int], float], pixels: int, dice: Dice
    ) -> tuple[tuple[int, int], Tensor, list[Scene]]:
        """The next batch: a size out of `mix`, as many scenes of it as have `pixels` together, and what they show. New
        shards are taken in every REFRESH batches."""
        if self._batches % REFRESH == 0:
            self.refresh()
        self._batches += 1
        size = self.choose(mix, dice.shared)
        return (size, *self.draw(size, max(1, pixels // (size[0] * size[1])), dice.own))

    def draw(self, size: tuple[int, int], count: int, rng: random.Random) -> tuple[Tensor, list[Scene]]:
        """Random scenes of one size: b 4 h w, float32, unit variance, and what they show."""
        bucket = self._buckets[size]
        places = [(rng.randrange(len(bucket.scenes)), rng.randrange(SHARD)) for _ in range(count)]
        z = torch.from_numpy(np.stack([bucket.latents[shard][row] for shard, row in places])).float()
        return z, [bucket.scenes[shard][row] for shard, row in places]
