"""Trains the UNet: SD 1.5's own blocks, narrower, v-prediction on SD 1.5's noise schedule.

One process a core, gradients averaged over gloo. Everything needed to go on lies in the state folder; a later start
with the same arguments resumes from the last checkpoint, its clock and random numbers included; SIGTERM writes one.

Two liberties against plain training, both for pictures that survive few steps and high guidance. Noise is never total
in this schedule (at its end a tenth of the picture's amplitude is left), yet sampling starts from pure noise; and
guidance overshoots. So at high noise some latents get in with their signal weakened or exaggerated, and still the
true picture is asked for. The finest level's self-attention adds nothing (its output weights are zero) and costs
nothing in training: at 512 px it would take more time than all the rest.
"""

import copy
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from demo.captions import caption
from demo.latents import Store
from demo.tokenizer import encode

CHANNELS = (16, 32, 96, 128)
HEADS = (1, 1, 3, 4)
BATCH_PIXELS = 24 * 256 * 256  # pixels a step and process
NO_CAPTION = 0.1
SNR_CAP = 6.0  # the weight of the clean image's error never exceeds this (min-SNR 5, plus 1 for v)
TRAINED_STEPS = 1000
SMALL = {(256, 256): 0.8, (384, 256): 0.08, (256, 384): 0.08, (192, 352): 0.02, (352, 192): 0.02}
LARGE = {
    (512, 512): 0.56, (256, 256): 0.10, (768, 512): 0.07, (512, 768): 0.07, (384, 704): 0.04, (704, 384): 0.04,
    (640, 640): 0.05, (768, 768): 0.07,
}  # fmt: skip


def new() -> UNet2DConditionModel:
    """An untrained UNet of the checkpoint's shape whose residual branches start as zero."""
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        attention_head_dim=HEADS,
        norm_num_groups=4,
        layers_per_block=2,
        cross_attention_dim=128,
    )
    for name, module in unet.named_modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
        elif name.endswith("proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


class Nothing:
    """An attention whose output is zero."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """b n c of zeros."""
        return torch.zeros_like(hidden_states)


class _Plain:
    """Attention as two products and a softmax: on a CPU its backward pass is far quicker than the fused one's."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """b n c."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2).flatten(0, 1)  # b*heads n c/heads

        q, k, v = heads(attn.to_q(hidden_states)), heads(attn.to_k(source)), heads(attn.to_v(source))
        weights = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2)).softmax(-1)
        mixed = torch.bmm(weights.to(v.dtype), v).unflatten(0, (-1, attn.heads)).transpose(1, 2).flatten(2)
        out: Tensor = attn.to_out[0](mixed)
        return out


def lighten(unet: UNet2DConditionModel) -> None:
    """Makes training cheap: plain attention, and none at the finest level, whose weights are zeroed and frozen."""
    for module in unet.modules():
        if isinstance(module, Attention):
            module.set_processor(_Plain())
    for transformer in [*unet.down_blocks[0].attentions, *unet.up_blocks[-1].attentions]:
        for block in transformer.transformer_blocks:
            nn.init.zeros_(block.attn1.to_out[0].weight)
            nn.init.zeros_(block.attn1.to_out[0].bias)
            block.attn1.requires_grad_(False)
            block.attn1.set_processor(Nothing())


def alphas() -> Tensor:
    """1000: the share of the signal's variance, SD 1.5's scaled-linear schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TRAINED_STEPS) ** 2
    return torch.cumprod(1 - betas, 0)


def _times(count: int, rank: int, world: int, high: float, shared: random.Random) -> Tensor:
    """b: evenly spread over the schedule within all processes' batches; a share `high` from its noisier half only."""
    shift, order = shared.random(), list(range(count * world))
    shared.shuffle(order)
    u = torch.tensor([(place + shift) / (count * world) for place in order[rank::world]])
    upper = torch.rand(count) < high
    return torch.where(upper, 500 + u * 500, u * 1000).long().clamp(0, TRAINED_STEPS - 1)


def _signal(t: Tensor) -> Tensor:
    """b: what the signal is multiplied with: mostly 1, at high noise sometimes none, less or more."""
    chance = 0.35 * ((t.float() - 450) / 350).clamp(0, 1)
    which, u = torch.rand_like(chance), torch.rand_like(chance)
    none = torch.where(t > 780, torch.zeros_like(u), u)
    factor = torch.where(which < 0.35, none, torch.where(which < 0.6, u, torch.exp(u * math.log(6.0))))
    return torch.where(torch.rand_like(chance) < chance, factor, torch.ones_like(factor))


def loss(unet: nn.Module, z: Tensor, t: Tensor, text: Tensor, schedule: Tensor) -> Tensor:
    """Weighted squared error of v. z: b 4 h w, float32, unit variance; t: b; text: b 77 128."""
    noise = torch.randn_like(z)
    share = schedule[t].view(-1, 1, 1, 1)
    alpha, sigma = share.sqrt(), (1 - share).sqrt()
    x = alpha * _signal(t).view(-1, 1, 1, 1) * z + sigma * noise
    v = (alpha * x - z) / sigma  # the v with which alpha x - sigma v is z, whatever x is
    with torch.autocast("cpu", dtype=torch.bfloat16):
        guess = unet(x, t, text).sample
    error = F.mse_loss(guess.float(), v, reduction="none").mean((1, 2, 3))
    snr = (share / (1 - share)).flatten()
    return (error * (SNR_CAP / (snr + 1)).clamp(max=1.0)).mean()


@dataclass(frozen=True)
class Run:
    data: Path  # shards of latents
    tokenizer: Path
    text: Path
    state: Path  # checkpoints
    minutes: float
    rate: float
    large_from: float  # share of the time after which the large sizes are trained
    publish: Callable[[UNet2DConditionModel], None]  # called with the average weights at every checkpoint


class _Optimizers:
    """Muon for matrices and convolutions, AdamW for the rest, both under one rate."""

    def __init__(self, parameters: list[nn.Parameter], rate: float) -> None:
        self._rate = rate
        matrices = [p for p in parameters if p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 16]
        chosen = {id(p) for p in matrices}
        self._flat = [(nn.Parameter(p.data.view(p.shape[0], -1)), p) for p in matrices]  # the same memory
        rest = [p for p in parameters if id(p) not in chosen]
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0),
            torch.optim.Muon(
                [flat for flat, _ in self._flat], lr=0.0, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
            ),
        ]

    def step(self, share: float) -> None:
        """One step at a share of the full rate."""
        for flat, p in self._flat:
            assert p.grad is not None
            flat.grad = p.grad.view(flat.shape)
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


def train(run: Run) -> None:
    """Trains until the run's minutes are over, as one of WORLD_SIZE processes of number RANK."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo")
    tokenizer = CLIPTokenizer.from_pretrained(run.tokenizer)
    text = CLIPTextModel.from_pretrained(run.text).eval()
    torch.manual_seed(0)
    unet = new()
    lighten(unet)
    average = copy.deepcopy(unet).eval()
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizers = _Optimizers(parameters, run.rate)
    torch.manual_seed(100 + rank)
    rng, shared = random.Random(100 + rank), random.Random(7)
    schedule, store = alphas(), Store(run.data)
    step, before = 0, 0.0
    file = run.state / f"state-{rank}.pt"
    if file.exists():
        saved = torch.load(file, weights_only=False)
        unet.load_state_dict(saved["unet"])
        average.load_state_dict(saved["average"])
        for optimizer, kept in zip(optimizers.all, saved["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        step, before = saved["step"], saved["seconds"]
        torch.set_rng_state(saved["torch"])
        rng.setstate(saved["rng"])
        shared.setstate(saved["shared"])

    def save(seconds: float) -> None:
        run.state.mkdir(parents=True, exist_ok=True)
        state = {
            "unet": unet.state_dict(), "average": average.state_dict(), "step": step, "seconds": seconds,
            "optimizers": [optimizer.state_dict() for optimizer in optimizers.all],
            "torch": torch.get_rng_state(), "rng": rng.getstate(), "shared": shared.getstate(),
        }  # fmt: skip
        torch.save(state, file.with_suffix(".partial"))
        file.with_suffix(".partial").rename(file)
        if rank == 0:
            run.publish(average)

    start, kept_loss, seen, at_print, saved_at = time.monotonic(), 0.0, 0, time.monotonic(), 0.0
    clock = torch.zeros(2, dtype=torch.float64)  # seconds trained; whether to stop now
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    first = step
    while True:
        clock[0], clock[1] = before + time.monotonic() - start, told.is_set()
        if world > 1:
            dist.broadcast(clock, 0)
        seconds = clock[0].item()
        done = seconds / 60 / run.minutes
        if done >= 1 or clock[1]:
            break
        if (step - first) % 100 == 0:
            store.refresh()
        there = store.counts()
        mix = {size: share for size, share in (LARGE if done >= run.large_from else SMALL).items() if size in there}
        size = shared.choices(list(mix), list(mix.values()))[0]
        z, scenes = store.draw(size, max(1, BATCH_PIXELS // (size[0] * size[1])), rng)
        captions = ["" if rng.random() < NO_CAPTION else caption(scene, rng) for scene in scenes]
        t = _times(len(z), rank, world, 0.5 - 0.3 * done, shared)
        with torch.no_grad():
            hidden = text(torch.tensor(encode(tokenizer, captions))).last_hidden_state
        value = loss(unet, z, t, hidden, schedule)
        unet.zero_grad(set_to_none=True)
        value.backward()
        if world > 1:
            _average_gradients(parameters, world)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizers.step(min(1.0, (step + 1) / 100) * (0.5 * (1 + math.cos(math.pi * done)) * 0.98 + 0.02))
        step += 1
        with torch.no_grad():
            decay = min(0.996, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - decay)
        kept_loss += value.item()
        seen += len(z) * world
        if step % 50 == 0 and rank == 0:
            rate = seen / (time.monotonic() - at_print)
            print(f"{seconds / 60:.1f}m step {step} loss {kept_loss / 50:.4f} {rate:.1f} images/s {size}", flush=True)
            kept_loss, seen, at_print = 0.0, 0, time.monotonic()
        if seconds - saved_at > 240:
            saved_at = seconds
            save(seconds)
    save(seconds)
    if world > 1:
        dist.destroy_process_group()
