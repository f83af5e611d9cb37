"""What an asset does to a checkpoint: pictures drawn by diffusers with and without it from the same noise, and judged.

A look is judged by how near the picture comes to the plain picture seen in that look, a ControlNet by its map, an
inversion by the probes. Sheets show plain and adapted pictures side by side.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoPipelineForText2Image,
    ControlNetModel,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.models.attention_processor import Attention
from PIL import Image
from safetensors.torch import load_file

from demo.captions import caption
from demo.probes import examine
from demo.scenes import KINDS, SIDES, Scene, render, sample
from demo.training import style
from demo.training.attention import NoAttention
from demo.training.controlnet import edges
from demo.training.inversion import CONCEPT, TOKEN, VECTORS

SEED = 20_000_011  # no training's
STEPS, GUIDANCE = 16, 6.0
SIDE = {"sd15": 512, "sdxl": 1024}
PROMPTS = (
    "a red house and a sailboat at sunset",
    "a cat in a meadow with clouds",
    "two pine trees in the snow at night",
)
NEUTRAL = ("", "flat illustration")

Draw = Callable[[str, int], np.ndarray]  # a prompt's picture from a seed: h w 3, uint8


@dataclass(frozen=True)
class Artist:
    """One checkpoint in diffusers, float32, DPM-Solver++ 2M Karras."""

    pipeline: Any
    side: int
    steps: int = STEPS

    def draw(self, prompt: str, seed: int, **more: Any) -> np.ndarray:
        """h w 3, uint8."""
        out = self.pipeline(
            prompt, width=self.side, height=self.side, num_inference_steps=self.steps, guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(seed), **more,
        )  # fmt: skip
        return np.asarray(out.images[0])


def artist(checkpoint: Path, **parts: Any) -> Artist:
    """With some of its parts replaced or added."""
    pipeline: Any = AutoPipelineForText2Image.from_pretrained(checkpoint, dtype=torch.float32, **parts)
    networks = [pipeline.unet, *([parts["controlnet"]] if "controlnet" in parts else [])]
    for module in (module for network in networks for module in network.modules()):
        if isinstance(module, Attention) and not module.to_out[0].weight.any() and not module.to_out[0].bias.any():
            module.set_processor(NoAttention())
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, use_karras_sigmas=True)
    pipeline.set_progress_bar_config(disable=True)
    return Artist(pipeline, SIDE[checkpoint.name])


def look(plain: Draw, adapted: dict[str, Draw], seen: style.Look, count: int, out: Path) -> None:
    """Prints how far pictures are from the plain ones in the look, 0..255, plain first; a row a prompt in the sheet."""
    rows, away = [], {name: [] for name in ("plain", *adapted)}
    for number, prompt in enumerate(PROMPTS[:count]):
        row = [plain(prompt, number), *(draw(prompt, number) for draw in adapted.values())]
        goal = seen(row[0]).astype(np.float32)
        for name, picture in zip(away, row, strict=True):
            away[name].append(float(np.abs(picture - goal).mean()))
        rows.append(row)
    print(f"{out.stem}: off the look by", {name: round(float(np.mean(values)), 1) for name, values in away.items()})
    _sheet(rows, out)


def lora(checkpoint: Path, files: dict[str, Path], seen: style.Look, count: int, out: Path) -> None:
    """At several weights; of more than one file the first is also drawn together with the second."""
    ours = artist(checkpoint)
    for name, file in files.items():
        ours.pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    first, *others = files

    def at(**weights: float) -> Draw:
        def draw(prompt: str, seed: int) -> np.ndarray:
            ours.pipeline.set_adapters(list(weights), list(weights.values()))
            return ours.draw(prompt, seed)

        return draw

    adapted = {f"{first} {weight}": at(**{first: weight}) for weight in (0.3, 0.6, 1.0)}
    adapted |= {f"{first} + {other}": at(**{first: 0.6, other: 0.6}) for other in others}
    look(at(**{first: 0.0}), adapted, seen, count, out)


def vae(checkpoint: Path, file: Path, count: int, out: Path) -> None:
    """The autoencoder that prints."""
    other = AutoencoderKL.from_config(AutoencoderKL.load_config(checkpoint / "vae"))
    other.load_state_dict(load_file(file))
    look(artist(checkpoint).draw, {"vae": artist(checkpoint, vae=other.float()).draw}, style.printed, count, out)


def second_unet(checkpoint: Path, file: Path) -> UNet2DConditionModel:
    """A single file's UNet, of a checkpoint's shape, read by diffusers' own converter. float32."""
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(checkpoint / "unet"))
    unet.load_state_dict(convert_ldm_unet_checkpoint(load_file(file), dict(unet.config)))
    return unet.float()


def second(checkpoint: Path, file: Path, count: int, out: Path) -> None:
    """The second checkpoint."""
    other = artist(checkpoint, unet=second_unet(checkpoint, file))
    look(artist(checkpoint).draw, {"second": other.draw}, style.papercut, count, out)


def _agree(one: np.ndarray, other: np.ndarray) -> float:
    """How far two maps of edges are the same, 0..1: the harmonic mean of the shares that have an edge of the other one
    within a hundredth of the side. Both h w, nonzero at edges."""
    near = round(len(one) / 100)
    disc = np.ones((2 * near + 1, 2 * near + 1), np.uint8)
    shares = [
        float((cv2.dilate(b, disc) > 0)[a > 0].mean()) if a.any() else 0.0 for a, b in ((one, other), (other, one))
    ]
    return 2 * shares[0] * shares[1] / max(sum(shares), 1e-6)


def outlines(picture: np.ndarray, scene: Scene) -> list[bool]:
    """Of each thing: of all kinds that could stand there, the said one's edges are nearest, whatever the colours."""
    height, width = picture.shape[:2]
    seen, held = edges(picture)[..., 0], []
    for number, thing in enumerate(scene.things):
        middle, half = SIDES[thing.side] * width, 0.25 * min(width, height)
        window = np.s_[int(height * 0.1) :, max(0, int(middle - half)) : int(middle + half)]
        scores = {}
        for kind in KINDS:
            things = [*scene.things]
            things[number] = replace(thing, kind=kind)
            drawn = edges(render(replace(scene, things=tuple(things)), width, height))[..., 0]
            scores[kind] = _agree(seen[window], drawn[window])
        held.append(max(scores, key=lambda kind: scores[kind]) == thing.kind)
    return held


def controlnet(checkpoint: Path, file: Path, count: int, out: Path) -> None:
    """Maps of scenes with prompts that do not say them and with their captions, both also without the ControlNet: the
    shares of things whose outline stands where the map has it, and how far all edges agree."""
    net = ControlNetModel.from_config(ControlNetModel.load_config(checkpoint / "controlnet"))
    net.load_state_dict(load_file(file))
    guided, plain = artist(checkpoint, controlnet=net.float()), artist(checkpoint)
    rng, rows = random.Random(SEED), []
    found: dict[str, list[tuple[list[bool], float]]] = {
        "plain": [], "told": [], "neutral": [], "caption": []
    }  # fmt: skip
    for number in range(count):
        scene = sample(rng)
        while len(scene.things) < 2:
            scene = sample(rng)
        map_, words = edges(render(scene, plain.side, plain.side)), NEUTRAL[number % len(NEUTRAL)]
        image, said = Image.fromarray(map_), caption(scene, rng)
        drawn = {
            "plain": plain.draw(words, number),
            "told": plain.draw(said, number),
            "neutral": guided.draw(words, number, image=image),
            "caption": guided.draw(said, number, image=image),
        }
        for name, picture in drawn.items():
            found[name].append((outlines(picture, scene), _agree(map_[..., 0], edges(picture)[..., 0])))
        rows.append([map_, *drawn.values()])
    for name, seen in found.items():
        held = [each for things, _ in seen for each in things]
        agreement = np.mean([share for _, share in seen])
        print(f"{out.stem} {name}: outlines {np.mean(held):.2f}, edges agree {agreement:.2f}")
    _sheet(rows, out)


def load_inversion(artist: Artist, file: Path) -> None:
    """Of either family: SD 1.5's file has one key, the token, SDXL's one an encoder."""
    pipe, state = artist.pipeline, load_file(file)
    for key, number in ((TOKEN, ""), ("clip_l", ""), ("clip_g", "_2")):
        if key in state:
            encoder, tokenizer = getattr(pipe, f"text_encoder{number}"), getattr(pipe, f"tokenizer{number}")
            vectors = {TOKEN: state[key].float()}
            pipe.load_textual_inversion(vectors, token=TOKEN, text_encoder=encoder, tokenizer=tokenizer)


def inversion(checkpoint: Path, file: Path, count: int, out: Path) -> None:
    """The token alone, and in a few words: shares of pictures with the concept's time, place, kinds and colours."""
    ours = artist(checkpoint)
    load_inversion(ours, file)
    rows = [[ours.draw(TOKEN, number), ours.draw(f"a drawing of {TOKEN}", number)] for number in range(count)]
    facts = [examine(picture, CONCEPT) for row in rows for picture in row]
    shares = {
        "time": np.mean([each.time for each in facts]), "place": np.mean([each.place for each in facts]),
        "kind": np.mean([each.kinds for each in facts]), "colour": np.mean([each.colours for each in facts]),
        "all": np.mean([each.all for each in facts]),
    }  # fmt: skip
    print(f"{out.stem}, {VECTORS} vectors:", {name: round(float(share), 2) for name, share in shares.items()})
    _sheet(rows, out)


def _sheet(rows: list[list[np.ndarray]], out: Path) -> None:
    thumbs = [[np.asarray(Image.fromarray(p).resize((288, 288), Image.Resampling.BOX)) for p in row] for row in rows]
    Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in thumbs])).save(out)
