"""What the v-predicting networks are trained to do: SD 1.5's noise schedule, and the loss of a batch.

Two liberties against plain training, both for pictures that survive few steps and high guidance. Noise is never total
in this schedule (at its end a tenth of the picture's amplitude is left), yet sampling starts from pure noise; and
guidance overshoots. So at high noise some latents get in with their signal weakened or exaggerated, and still the
true picture is asked for.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from demo.training.loop import Dice

SNR_CAP = 6.0  # the weight of the clean image's error never exceeds this (min-SNR 5, plus 1 for v)
TRAINED_STEPS = 1000


def alphas() -> Tensor:
    """1000: the share of the signal's variance, SD 1.5's scaled-linear schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TRAINED_STEPS) ** 2
    return torch.cumprod(1 - betas, 0)


def spread(count: int, dice: Dice) -> Tensor:
    """b: shares of 0..1, evenly spread within all processes' batches together."""
    world, order = dice.world, list(range(count * dice.world))
    shift = dice.shared.random()
    dice.shared.shuffle(order)
    return torch.tensor([(place + shift) / (count * world) for place in order[dice.rank :: world]])


def times(count: int, high: float, dice: Dice) -> Tensor:
    """b: whole timesteps, evenly spread; a share `high` of them from the noisier half only."""
    u = spread(count, dice)
    upper = torch.rand(count) < high
    return torch.where(upper, 500 + u * 500, u * 1000).long().clamp(0, TRAINED_STEPS - 1)


def _signal(t: Tensor) -> Tensor:
    """b: what the signal is multiplied with: mostly 1, at high noise sometimes none, less or more."""
    chance = 0.35 * ((t.float() - 450) / 350).clamp(0, 1)
    which, u = torch.rand_like(chance), torch.rand_like(chance)
    none = torch.where(t > 780, torch.zeros_like(u), u)
    factor = torch.where(which < 0.35, none, torch.where(which < 0.6, u, torch.exp(u * math.log(6.0))))
    return torch.where(torch.rand_like(chance) < chance, factor, torch.ones_like(factor))


def noised(z: Tensor, t: Tensor, schedule: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x at timestep t, the v with which alpha x - sigma v is z whatever x is, and the weight of each row's error."""
    share = schedule[t].view(-1, 1, 1, 1)
    alpha, sigma = share.sqrt(), (1 - share).sqrt()
    x = alpha * _signal(t).view(-1, 1, 1, 1) * z + sigma * torch.randn_like(z)
    snr = (share / (1 - share)).flatten()
    return x, (alpha * x - z) / sigma, (SNR_CAP / (snr + 1)).clamp(max=1.0)


def v_loss(predict: Callable[[Tensor], Tensor], z: Tensor, t: Tensor, schedule: Tensor) -> Tensor:
    """Weighted squared error of v. z: b c h w, float32, unit variance; t: b."""
    x, v, weight = noised(z, t, schedule)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        guess = predict(x)
    return (F.mse_loss(guess.float(), v, reduction="none").mean((1, 2, 3)) * weight).mean()
