"""Does an IP-Adapter carry over what its methods say? Pictures by diffusers with and without it, judged by the probes.

Every method gets a reference picture and an empty prompt; the outcome is held against a scene that has of the reference
what the method should carry over.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from PIL import Image
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from demo.probes import examine
from demo.scenes import COLOURS, KINDS, Scene, Thing, render, sample
from demo.training.alike import alike_in_composition, alike_in_style, same

SEED = 20_000_003  # no training's
GUIDANCE = 5.0
SCALE: Mapping[str, Mapping[str, object]] = {
    "sdxl": {
        "full": 1.0, "style": {"up": {"block_0": [0.0, 1.0, 0.0]}}, "composition": {"down": {"block_2": [0.0, 1.0]}}
    },
    "sd15": {"full": 1.0, "style": {"up": {"block_1": 1.0}}, "composition": {"down": {"block_2": 1.0}, "mid": 1.0}},
}  # fmt: skip


# what each method should make of a reference when nothing is said
WANTED: Mapping[str, Callable[[Scene, random.Random], Scene]] = {
    "full": same,
    "style": alike_in_style,
    "composition": alike_in_composition,
}


@dataclass(frozen=True)
class Seen:
    """Of one picture."""

    time: bool
    place: bool
    kinds: tuple[bool, ...]  # on their sides, in whatever colour
    colours: tuple[bool, ...]
    distance: float  # of 4x4 mean colours, 0..255


def pipeline(folder: Path) -> DiffusionPipeline:
    """A checkpoint with its image encoder, in float32, with DPM-Solver++ 2M Karras."""
    eyes = folder / "image_encoder"
    pipe = DiffusionPipeline.from_pretrained(
        folder,
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(eyes, dtype=torch.float32),
        feature_extractor=CLIPImageProcessorPil.from_pretrained(eyes),
        dtype=torch.float32,
    )
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _coarse(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((4, 4), Image.Resampling.BOX), np.float32)


def look(picture: np.ndarray, scene: Scene) -> Seen:
    """Judges one picture. picture: h w 3, uint8."""

    def recoloured(thing: Thing, colour: str) -> Scene:
        return replace(scene, things=tuple(replace(t, colour=colour) if t == thing else t for t in scene.things))

    facts = examine(picture, scene)
    kinds = tuple(
        held or any(examine(picture, recoloured(thing, colour)).kinds[k] for colour in COLOURS)
        for k, (thing, held) in enumerate(zip(scene.things, facts.kinds, strict=True))
    )
    distance = float(np.abs(_coarse(picture) - _coarse(render(scene, *picture.shape[1::-1]))).mean())
    return Seen(facts.time, facts.place, kinds, facts.colours, distance)


def _summary(seen: list[Seen]) -> str:
    kinds = [value for each in seen for value in each.kinds]
    colours = [value for each in seen for value in each.colours]
    return (
        f"time {np.mean([s.time for s in seen]):.2f} place {np.mean([s.place for s in seen]):.2f} "
        f"kind {np.mean(kinds):.2f} colour {np.mean(colours):.2f} distance {np.mean([s.distance for s in seen]):.1f}"
    )


def judge(folder: Path, adapter: Path, side: int, steps: int, count: int, out: Path) -> None:
    """Prints each method's shares with and without the adapter; writes a sheet: reference, without, with, by method."""
    torch.set_num_threads(1)
    engine, pipe = folder.name, pipeline(folder)
    rows = []
    pipe.load_ip_adapter(adapter.parent, subfolder="", weight_name=adapter.name)
    for name, want in WANTED.items():
        rng = random.Random(SEED)
        found: dict[bool, list[Seen]] = {False: [], True: []}
        for number in range(count):
            reference = sample(rng)
            while not reference.things or not all(KINDS[thing.kind].coloured for thing in reference.things):
                reference = sample(rng)
            wanted = want(reference, rng)
            shown, row = render(reference, side, side), []
            for on in (False, True):
                pipe.set_ip_adapter_scale(0.0)
                if on:
                    pipe.set_ip_adapter_scale(SCALE[engine][name])
                picture = np.asarray(
                    pipe(
                        "", num_inference_steps=steps, guidance_scale=GUIDANCE, height=side, width=side,
                        ip_adapter_image=Image.fromarray(shown), generator=torch.Generator().manual_seed(number),
                    ).images[0]
                )  # fmt: skip
                found[on].append(look(picture, wanted))
                row.append(picture)
            print(f"{name} {number}: {wanted.things} {wanted.time} {wanted.place}", flush=True)
            rows.append([shown, *row])
        print(f"{name} without: {_summary(found[False])}\n{name} with:    {_summary(found[True])}", flush=True)
    thumbs = [[np.asarray(Image.fromarray(p).resize((256, 256), Image.Resampling.BOX)) for p in row] for row in rows]
    Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in thumbs])).save(out)
