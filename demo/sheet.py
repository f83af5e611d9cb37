"""The contact sheet: pictures of fixed prompts and seeds with the prompt under each."""

from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import Attention
from PIL import Image, ImageDraw

from demo.train_unet import Nothing

PROMPTS = (
    "a red house and a sailboat at sunset",
    "a purple tent in a meadow at night, stars and the moon",
    "a snowman and a blue house in the snow",
    "a lighthouse by the sea at night with the moon",
    "an orange cat on the left and a green tree on the right",
    "a cactus and a pink tent in the desert at sunset",
    "a yellow hot air balloon and a windmill on a sunny day",
    "a green sailboat on the ocean at dawn, mountains",
    "a red mushroom and a white flower in a field",
    "two blue cats on the beach",
    "snowy mountains and pine tree in winter at night",
    "a sandy desert at sunrise with clouds",
)
TILE = 256


def load(checkpoint: Path) -> StableDiffusionPipeline:
    """The checkpoint in float32 with the sampler that judging uses: DPM-Solver++ 2M with Karras levels.

    Attention whose output weights are all zero is left out: the same picture in less than half the time.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    for module in pipeline.unet.modules():
        if isinstance(module, Attention) and not module.to_out[0].weight.any() and not module.to_out[0].bias.any():
            module.set_processor(Nothing())
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, use_karras_sigmas=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    pipeline: StableDiffusionPipeline, prompt: str, seed: int, width: int, height: int, steps: int, guidance: float
) -> Image.Image:
    """One picture."""
    picture: Image.Image = pipeline(
        prompt,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]
    return picture


def compose(pictures: list[tuple[str, Image.Image]], columns: int) -> Image.Image:
    """Tiles with their captions below."""
    rows = (len(pictures) + columns - 1) // columns
    sheet = Image.new("RGB", (columns * (TILE + 8) + 8, rows * (TILE + 40) + 8), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (words, picture) in enumerate(pictures):
        x, y = 8 + index % columns * (TILE + 8), 8 + index // columns * (TILE + 40)
        small = picture.copy()
        small.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
        sheet.paste(small, (x, y))
        half = words.rfind(" ", 0, 42) if len(words) > 42 else len(words)
        pen.text((x, y + TILE + 4), words[:half] + "\n" + words[half:].strip(), fill="black")
    return sheet


def draw(checkpoint: Path, out: Path, steps: int, guidance: float) -> None:
    """Writes the contact sheet at 512 px, seed 1."""
    pipeline = load(checkpoint)
    pictures = [(prompt, generate(pipeline, prompt, 1, 512, 512, steps, guidance)) for prompt in PROMPTS]
    out.parent.mkdir(parents=True, exist_ok=True)
    compose(pictures, 4).quantize(256).save(out, optimize=True)  # a fifth of the bytes
    print(out)
