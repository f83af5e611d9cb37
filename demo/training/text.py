"""Trains the text encoder (CLIP's, 128 wide, 4 layers) before any picture: to tell the scene from its caption.

Afterwards it is frozen. The scene is asked at the end token and at padding positions alike, so that every place the
UNet looks at knows the whole scene.
"""

import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo.captions import caption
from demo.scenes import COLOURS, KINDS, PLACES, SIDES, TIMES, Scene, sample
from demo.tokenizer import LENGTH, encode

WIDTH = 128
BATCH = 32
LEARNING_RATE = 1.5e-3
ASKED = 4  # positions asked in each caption, the end token among them
_KINDS = ("", *KINDS)
_COLOURS = ("", *COLOURS)
QUESTIONS = (len(PLACES), len(TIMES), 2, 2, 2, 2, 2) + (len(_KINDS), len(_COLOURS)) * len(SIDES)  # answers to each


def new(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder of the checkpoint's shape."""
    end = tokenizer.eos_token_id
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=512, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=LENGTH, projection_dim=WIDTH, hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end,
        )
    )  # fmt: skip


def answers(scene: Scene) -> list[int]:
    """The scene as one number a question."""
    there = {thing.side: (_KINDS.index(thing.kind), _COLOURS.index(thing.colour)) for thing in scene.things}
    facts = [PLACES.index(scene.place), TIMES.index(scene.time)]
    facts += [int(fact) for fact in (scene.sun, scene.moon, scene.stars, scene.clouds, scene.mountains)]
    return facts + [number for side in SIDES for number in there.get(side, (0, 0))]


def _batch(tokenizer: CLIPTokenizer, rng: random.Random, count: int) -> tuple[Tensor, Tensor]:
    scenes = [sample(rng) for _ in range(count)]
    ids = torch.tensor(encode(tokenizer, [caption(scene, rng) for scene in scenes]))  # b 77
    return ids, torch.tensor([answers(scene) for scene in scenes])  # b questions


def _asked(ids: Tensor, end: int) -> Tensor:
    """b ASKED: the first end token and later ones at random."""
    first = (ids == end).int().argmax(1, keepdim=True)
    later = first + (torch.rand(len(ids), ASKED - 1) * (LENGTH - first)).long()
    return torch.cat([first, later], 1)


def accuracy(text: CLIPTextModel, head: nn.Linear, tokenizer: CLIPTokenizer, count: int) -> tuple[float, float]:
    """Share of questions, and of scenes in every question, answered rightly at the end token of unseen captions."""
    text.eval()
    with torch.no_grad():
        ids, wanted = _batch(tokenizer, random.Random(2**20), count)
        first = (ids == tokenizer.eos_token_id).int().argmax(1)
        hidden = text(ids).last_hidden_state[torch.arange(count), first]
        got = torch.stack([part.argmax(-1) for part in head(hidden).split(QUESTIONS, -1)], 1)
    text.train()
    right = (got == wanted).float()
    return float(right.mean()), float(right.prod(1).mean())


def train(tokenizer_folder: Path, folder: Path, minutes: float, seed: int) -> None:
    """Trains on one core for so many minutes."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    text, head = new(tokenizer), nn.Linear(WIDTH, sum(QUESTIONS))
    with torch.no_grad():
        for name, p in text.named_parameters():
            if "embedding" in name:
                p.mul_(5)  # CLIP's own 0.02 suits far wider models
    parameters = [*text.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=1e-2)
    start, step, kept = time.monotonic(), 0, 0.0
    while (done := (time.monotonic() - start) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 60) * (0.5 * (1 + math.cos(math.pi * done)) * 0.98 + 0.02)
        ids, wanted = _batch(tokenizer, rng, BATCH)
        hidden = text(ids).last_hidden_state
        at = _asked(ids, tokenizer.eos_token_id)
        parts = head(hidden[torch.arange(BATCH)[:, None], at]).split(QUESTIONS, -1)  # b ASKED answers, a question each
        loss = torch.stack(
            [F.cross_entropy(part.flatten(0, 1), wanted[:, k].repeat_interleave(ASKED)) for k, part in enumerate(parts)]
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        kept += loss.item()
        if step % 200 == 0:
            each, every = accuracy(text, head, tokenizer, 256)
            print(
                f"{done * minutes:.1f}m step {step} loss {kept / 200:.3f} answers {each:.4f} scenes {every:.3f}",
                flush=True,
            )
            kept = 0.0
    each, every = accuracy(text, head, tokenizer, 2000)
    print(f"2000 unseen captions: answers {each:.4f}, whole scenes {every:.4f}", flush=True)
    text.save_pretrained(folder)
    torch.save(head.state_dict(), folder / "head.pt")
