"""Trains SDXL's second text encoder: the first one with a fifth layer on top, and a projection for the pooled state.

The four trained layers stay as they are, so that what the denoising network attends to (the state before the last
layer) is known good; the new layer only gathers the scene at the end token.
"""

import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo.captions import caption
from demo.scenes import sample
from demo.tokenizer import encode
from demo.training.text import QUESTIONS, answers

LAYERS = 5
BATCH = 64
LEARNING_RATE = 2e-3


def new(first: CLIPTextModel) -> CLIPTextModelWithProjection:
    """The first encoder's layers below one that does nothing yet, then a projection of equal width."""
    config = CLIPTextConfig(
        **{**first.config.to_dict(), "num_hidden_layers": LAYERS, "projection_dim": first.config.hidden_size}
    )
    second = CLIPTextModelWithProjection(config)
    grown = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in first.state_dict().items()}
    missing, unknown = second.load_state_dict(grown, strict=False)
    assert not unknown
    assert all("layers.4." in name or "text_projection" in name for name in missing)
    for name, p in second.named_parameters():
        p.requires_grad_("layers.4." in name or "text_projection" in name or "final_layer_norm" in name)
        if "layers.4." in name and name.endswith(("out_proj.weight", "fc2.weight")):
            nn.init.zeros_(p)
    return second


def train(first_folder: Path, tokenizer_folder: Path, folder: Path, minutes: float, seed: int) -> None:
    """Trains on one core for so many minutes."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    text = new(CLIPTextModel.from_pretrained(first_folder, dtype=torch.float32))
    head = nn.Linear(text.config.projection_dim, sum(QUESTIONS))
    parameters = [*(p for p in text.parameters() if p.requires_grad), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=1e-2)

    def step_on(rng: random.Random, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        scenes = [sample(rng) for _ in range(count)]
        ids = torch.tensor(encode(tokenizer, [caption(scene, rng) for scene in scenes]))
        parts = head(text(ids).text_embeds).split(QUESTIONS, -1)
        wanted = torch.tensor([answers(scene) for scene in scenes])
        right = torch.stack([part.argmax(-1) for part in parts], 1) == wanted
        return torch.stack([F.cross_entropy(part, wanted[:, k]) for k, part in enumerate(parts)]).sum(), right

    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 60) * (0.5 * (1 + math.cos(math.pi * done)) * 0.98 + 0.02)
        loss, right = step_on(rng, BATCH)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            print(
                f"{done * minutes:.1f}m step {step} loss {loss.item():.3f} answers {right.float().mean():.4f}",
                flush=True,
            )
    with torch.no_grad():
        _, right = step_on(random.Random(2**20), 2000)
    print(
        f"2000 unseen captions, from the pooled state: answers {right.float().mean():.4f}, "
        f"whole scenes {right.all(1).float().mean():.4f}",
        flush=True,
    )
    text.save_pretrained(folder)
