"""Trains any of the denoising networks: the loop, the optimizers, the average of the weights, and starting again.

One process a core, gradients averaged over gloo. Everything needed to go on lies in the state folder; a later start
with the same arguments resumes from the last checkpoint, its clock and random numbers included; SIGTERM writes one.
Knows no network and no data: those are the task's.
"""

import copy
import math
import os
import random
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

SAVE_SECONDS = 240.0


@dataclass(frozen=True)
class Dice:
    """A process's random numbers besides torch's: its own, and those that are alike in all processes."""

    own: random.Random
    shared: random.Random
    rank: int
    world: int


class Task(Protocol):
    """What is trained."""

    model: nn.Module

    def loss(self, done: float, dice: Dice) -> tuple[Tensor, int]:
        """The loss of the next batch and its pictures. `done` is the share of the time that is over."""
        ...

    def publish(self, average: Any) -> None:
        """Called with the average weights at every checkpoint."""
        ...


@dataclass(frozen=True)
class Run:
    """How long and where."""

    state: Path  # checkpoints
    minutes: float
    rate: float
    warm_up: int = 100  # steps until the rate is at its peak


class _Optimizers:
    """Muon for matrices and convolutions, AdamW for the rest, both under one rate."""

    def __init__(self, parameters: list[nn.Parameter], rate: float) -> None:
        self._rate = rate
        matrices = [p for p in parameters if p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 16]
        chosen = {id(p) for p in matrices}
        self._flat = [(nn.Parameter(p.data.view(p.shape[0], -1)), p) for p in matrices]  # the same memory
        rest = [p for p in parameters if id(p) not in chosen]
        self.all: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0)]
        if matrices:  # an adapter of low rank has none
            flat = [flat for flat, _ in self._flat]
            self.all.append(torch.optim.Muon(flat, lr=0.0, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))

    def step(self, share: float) -> None:
        """One step at a share of the full rate."""
        for flat, p in self._flat:
            flat.grad = None if p.grad is None else p.grad.view(flat.shape)
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = self._rate * share
            optimizer.step()


def _average_gradients(parameters: list[nn.Parameter], world: int) -> None:
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)


def train(run: Run, task: Task) -> None:
    """Trains until the run's minutes are over, as one of WORLD_SIZE processes of number RANK."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo")
    model = task.model
    average = copy.deepcopy(model).eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizers = _Optimizers(parameters, run.rate)
    torch.manual_seed(100 + rank)
    dice = Dice(random.Random(100 + rank), random.Random(7), rank, world)
    step, before = 0, 0.0
    file = run.state / f"state-{rank}.pt"
    if file.exists():
        saved = torch.load(file, weights_only=False)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        for optimizer, kept in zip(optimizers.all, saved["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        step, before = saved["step"], saved["seconds"]
        torch.set_rng_state(saved["torch"])
        dice.own.setstate(saved["own"])
        dice.shared.setstate(saved["shared"])

    def save(seconds: float) -> None:
        run.state.mkdir(parents=True, exist_ok=True)
        state = {
            "model": model.state_dict(), "average": average.state_dict(), "step": step, "seconds": seconds,
            "optimizers": [optimizer.state_dict() for optimizer in optimizers.all],
            "torch": torch.get_rng_state(), "own": dice.own.getstate(), "shared": dice.shared.getstate(),
        }  # fmt: skip
        torch.save(state, file.with_suffix(".partial"))
        file.with_suffix(".partial").rename(file)
        if rank == 0:
            task.publish(average)

    start, kept_loss, seen, at_print, saved_at = time.monotonic(), 0.0, 0, time.monotonic(), before
    clock = torch.zeros(2, dtype=torch.float64)  # seconds trained; whether to stop now
    told = threading.Event()
    before_us = signal.signal(signal.SIGTERM, lambda *_: told.set())
    while True:
        clock[0], clock[1] = before + time.monotonic() - start, told.is_set()
        if world > 1:
            dist.broadcast(clock, 0)
        seconds = clock[0].item()
        done = seconds / 60 / run.minutes
        if done >= 1 or clock[1]:
            break
        value, pictures = task.loss(done, dice)
        model.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        if world > 1:
            _average_gradients(parameters, world)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizers.step(min(1.0, (step + 1) / run.warm_up) * (0.5 * (1 + math.cos(math.pi * done)) * 0.98 + 0.02))
        step += 1
        with torch.no_grad():
            decay = min(0.996, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        kept_loss += value.item()
        seen += pictures * world
        if step % 50 == 0 and rank == 0:
            rate = seen / (time.monotonic() - at_print)
            print(f"{seconds / 60:.1f}m step {step} loss {kept_loss / 50:.4f} {rate:.1f} images/s", flush=True)
            kept_loss, seen, at_print = 0.0, 0, time.monotonic()
        if seconds - saved_at > SAVE_SECONDS:
            saved_at = seconds
            save(seconds)
    save(seconds)
    signal.signal(signal.SIGTERM, before_us)
    if world > 1:
        dist.destroy_process_group()
