"""Do transfer images bring the subject? Pictures by diffusers' SDXL with and without them, judged by the probes.

The prompt names a thing and not its colour; the images show the thing in a colour, alone and elsewhere. The first steps
take the text without images, as PhotoMaker has it.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig

from demo.adapted import GUIDANCE, pipeline
from demo.probes import Facts, examine, summary
from demo.scenes import KINDS, Scene, render, sample
from demo.tokenizer import encode
from demo.training import sdxl
from demo.training.ip_adapter import LOOKED, looked_at
from demo.training.transfer import Told, hidden, spread, tell
from export.photomaker import IdEncoder, load

SEED = 20_000_004  # no training's
SIDE = 1024
START = 0.2  # share of the steps before the images count


def _asked(rng: random.Random, encoders: sdxl.Encoders) -> tuple[Scene, Told]:
    """A scene of up to two things, one of them, in a colour not its own, told by images."""
    while True:
        scene = sample(rng)
        things = [t for t in scene.things if KINDS[t.kind].coloured and t.colour != KINDS[t.kind].natural]
        told = tell(encoders.tokenizer, scene, things[:1], rng) if things else None
        if told is not None:
            return scene, told


@torch.no_grad()
def _states(told: Told, encoder: IdEncoder, encoders: sdxl.Encoders) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States of the text alone, states with the images (each 1 77 256), and the pooled state (1 128)."""
    written = encode(encoders.tokenizer, [told.text])
    ids, places = spread(written[0], told)
    states = hidden(encoders, torch.tensor([ids]))
    pictures = [picture for subject in told.subjects for picture in subject.pictures]
    identity = encoder.identity(looked_at(pictures, (LOOKED, LOOKED)))
    states[0, places] = encoder.fuse_module(states[0, places], identity)
    plain = torch.tensor(written)
    return hidden(encoders, plain), states, encoders.second(plain).text_embeds


def judge(checkpoint: Path, transfer: Path, steps: int, count: int, out: Path) -> None:
    """Prints what holds in pictures without and with images; writes a sheet: an image, without, with, by row."""
    torch.set_num_threads(1)
    pipe = pipeline(checkpoint)
    encoders = sdxl.Encoders(checkpoint / "text_encoder", checkpoint / "text_encoder_2", checkpoint / "tokenizer")
    encoder, lora = load(transfer / "photomaker.bin", CLIPVisionConfig.from_pretrained(transfer))
    pipe.load_lora_weights(lora, adapter_name="photomaker")
    rng, rows = random.Random(SEED), []
    found: dict[bool, list[Facts]] = {False: [], True: []}
    subjects: dict[bool, list[bool]] = {False: [], True: []}  # whether the subject is in its colour
    for number in range(count):
        scene, told = _asked(rng, encoders)
        alone, merged, pooled = _states(told, encoder, encoders)
        nothing, subject = torch.zeros_like(alone), told.subjects[0]
        row = [render(subject.pictures[0], SIDE, SIDE)]

        def merge(_pipe: Any, step: int, _t: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            late = step + 1 >= int(START * steps)
            return {"prompt_embeds": torch.cat([nothing, merged])} if late else tensors  # noqa: B023

        for on in (False, True):
            if on:
                pipe.enable_lora()
            else:
                pipe.disable_lora()
            picture = np.asarray(
                pipe(
                    prompt_embeds=alone, pooled_prompt_embeds=pooled, negative_prompt_embeds=nothing,
                    negative_pooled_prompt_embeds=torch.zeros_like(pooled), num_inference_steps=steps,
                    guidance_scale=GUIDANCE, height=SIDE, width=SIDE, generator=torch.Generator().manual_seed(number),
                    callback_on_step_end=merge if on else None, callback_on_step_end_tensor_inputs=["prompt_embeds"],
                ).images[0]
            )  # fmt: skip
            facts = examine(picture, scene)
            found[on].append(facts)
            subjects[on].append(facts.colours[scene.things.index(subject.thing)])
            row.append(picture)
        print(f"{number}: {told.text!r}, {len(subject.pictures)} of {subject.thing}", flush=True)
        rows.append(row)
    for on, words in ((False, "without"), (True, "with")):
        print(f"{words}: the subject's colour {np.mean(subjects[on]):.2f}; {summary(found[on])}", flush=True)
    thumbs = [[np.asarray(Image.fromarray(p).resize((256, 256), Image.Resampling.BOX)) for p in row] for row in rows]
    Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in thumbs])).save(out)
