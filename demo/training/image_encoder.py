"""Trains the image encoder (CLIP's vision half, 112 wide, 4 layers): to tell the scene from its picture.

The counterpart of `text.py`: the same questions, answered by one linear layer from the projected embedding, so that an
adapter that sees nothing else can read every fact. The colours of a 4x4 raster are asked too: they are the style. Knows
nothing of the adapters that use it.
"""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from demo.scenes import render, sample
from demo.training.loop import Dice
from demo.training.text import QUESTIONS, answers

SIDE = 224  # pixels: what a CLIP encoder looks at
EMBEDDING = 128  # width of what comes out
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's own, of red, green, blue in 0..1
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
RASTER = 4  # squares a side whose mean colours are asked
BATCH = 48
COLOUR_WEIGHT = 6.0  # of the raster's error beside the answers'
SIZES = ((224, 224),) * 6 + ((256, 256),) * 2 + ((512, 512), (384, 256), (256, 384), (448, 256), (256, 448))


def new() -> CLIPVisionModelWithProjection:
    """An untrained image encoder."""
    vision = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            image_size=SIDE, patch_size=32, hidden_size=112, intermediate_size=256, num_hidden_layers=4,
            num_attention_heads=4, projection_dim=EMBEDDING, hidden_act="quick_gelu",
        )
    )  # fmt: skip
    with torch.no_grad():
        vision.vision_model.embeddings.position_embedding.weight.mul_(10)  # CLIP's own 0.02 suits far wider models
    return vision


def pixel_values(pictures: list[np.ndarray]) -> Tensor:
    """What CLIPImageProcessor makes of pictures (h w 3, uint8): b 3 224 224, float32, about unit variance."""
    small = []
    for picture in pictures:
        height, width = picture.shape[:2]
        scale = SIDE / min(width, height)
        wide, high = max(SIDE, int(width * scale)), max(SIDE, int(height * scale))
        resized = np.asarray(Image.fromarray(picture).resize((wide, high), Image.Resampling.BICUBIC))
        x0, y0 = (wide - SIDE) // 2, (high - SIDE) // 2
        small.append(resized[y0 : y0 + SIDE, x0 : x0 + SIDE])
    x = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)


def raster(pixels: Tensor) -> Tensor:
    """b 48: the mean colours of 4x4 squares. pixels: b 3 224 224."""
    return F.avg_pool2d(pixels, SIDE // RASTER).flatten(1)


def worn(pixels: Tensor) -> Tensor:
    """Some of the pictures soft or grainy, as generated ones are. b 3 224 224."""
    soft = F.interpolate(F.avg_pool2d(pixels, 2), size=SIDE, mode="bilinear", align_corners=False)
    share = torch.rand(len(pixels), 1, 1, 1) * (torch.rand(len(pixels), 1, 1, 1) < 0.4)
    grain = 0.15 * torch.rand(len(pixels), 1, 1, 1) * (torch.rand(len(pixels), 1, 1, 1) < 0.4)
    return torch.lerp(pixels, soft, share) + grain * torch.randn_like(pixels)


def batch(rng: random.Random, count: int) -> tuple[Tensor, Tensor]:
    """Pictures of one size (b 3 224 224) and the answers they hold (b questions)."""
    scenes = [sample(rng) for _ in range(count)]
    width, height = rng.choice(SIZES)
    pictures = pixel_values([render(scene, width, height) for scene in scenes])
    return pictures, torch.tensor([answers(scene) for scene in scenes])


class Reader(nn.Module):
    """The image encoder and what asks it."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = new()
        self.head = nn.Linear(EMBEDDING, sum(QUESTIONS) + 3 * RASTER**2)

    def forward(self, pixels: Tensor) -> Tensor:
        """b answers+48."""
        told: Tensor = self.head(self.vision(pixels).image_embeds)
        return told


def accuracy(reader: Reader, count: int) -> tuple[float, float, float]:
    """Of unseen pictures: the share of questions answered rightly, of scenes in every question, the raster's error."""
    rng, right, error = random.Random(2**20), [], []
    with torch.no_grad():
        for _ in range(max(1, count // BATCH)):
            pixels, wanted = batch(rng, BATCH)
            *parts, colours = reader(pixels).split((*QUESTIONS, 3 * RASTER**2), -1)
            right.append((torch.stack([part.argmax(-1) for part in parts], 1) == wanted).float())
            error.append((colours - raster(pixels)).square().mean())
    all_right = torch.cat(right)
    return float(all_right.mean()), float(all_right.prod(1).mean()), float(torch.stack(error).mean().sqrt())


def write(vision: CLIPVisionModelWithProjection, folder: Path) -> None:
    """As diffusers' pipelines read it: half precision, config, and the preprocessor's settings."""
    copy = CLIPVisionModelWithProjection(vision.config)
    copy.load_state_dict(vision.state_dict())
    copy.half().save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)


class Image2Scene:
    """The task."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        torch.manual_seed(0)
        self.model: nn.Module = Reader()

    def loss(self, done: float, dice: Dice) -> tuple[Tensor, int]:
        """See `Task`."""
        pixels, wanted = batch(dice.own, BATCH)
        colours = raster(pixels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            told = self.model(worn(pixels))
        *parts, guess = told.float().split((*QUESTIONS, 3 * RASTER**2), -1)
        asked = torch.stack([F.cross_entropy(part, wanted[:, k]) for k, part in enumerate(parts)]).sum()
        return asked + COLOUR_WEIGHT * F.mse_loss(guess, colours), BATCH

    def publish(self, average: Reader) -> None:
        """See `Task`."""
        each, every, colours = accuracy(average, 8 * BATCH)
        print(f"answers {each:.4f} scenes {every:.3f} raster {colours:.3f}", flush=True)
        write(average.vision, self._folder)
