"""Noise levels: what a checkpoint was trained on, which levels a run visits, and how a raw output becomes a picture.

Pure functions of numbers. Knows no engine, no sampler and no request. Symbols are the papers': x = alpha * clean +
sigma * noise is the form a model takes, with alpha^2 + sigma^2 = 1 for a diffusion model and alpha + sigma = 1 for a
flow-matching one; k-diffusion's form is x / alpha, whose noise level is k = sigma / alpha (Karras et al. 2022, "EDM",
call that one sigma).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scheduler:
    """The noise schedule a checkpoint was trained with, in diffusers' own terms."""

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str  # "linear" or "scaled_linear"
    prediction_type: str  # "epsilon" or "v_prediction"
    steps_offset: int
    set_alpha_to_one: bool
    timestep_spacing: str | None = None  # None: the config names none and each sampler's own default holds


@dataclass(frozen=True)
class FlowScheduler:
    """The schedule of a flow-matching checkpoint, in diffusers' own terms."""

    num_train_timesteps: int
    shift: float  # more than 1: more of the steps at high noise


@dataclass(frozen=True)
class Level:
    """One noise level: x = alpha * clean + sigma * noise."""

    alpha: float
    sigma: float
    time: float  # what the model is told; 0..num_train_timesteps, may be fractional

    @property
    def k(self) -> float:
        """The noise level in k-diffusion's form. There is none where no picture is left (a flow's first level)."""
        return self.sigma / self.alpha


CLEAN = Level(alpha=1.0, sigma=0.0, time=0.0)

CleanFrom = Callable[[Array, Array, Level], Array]  # (raw output, x, level) -> clean, all c h w, float32


def clean_from_eps(raw: Array, x: Array, level: Level) -> Array:
    """The model predicts the noise (Ho et al. 2020)."""
    return (x - level.sigma * raw) / level.alpha


def clean_from_v(raw: Array, x: Array, level: Level) -> Array:
    """The model predicts v = alpha * noise - sigma * clean (Salimans and Ho 2022)."""
    return level.alpha * x - level.sigma * raw


def clean_from_flow(raw: Array, x: Array, level: Level) -> Array:
    """The model predicts the velocity noise - clean of the straight path between them (Lipman et al. 2023)."""
    return x - level.sigma * raw


CLEAN_FROM: Mapping[str, CleanFrom] = {"epsilon": clean_from_eps, "v_prediction": clean_from_v}


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The levels a checkpoint was trained on, and what its scheduler config says of walking them."""

    alphas_cumprod: Array  # t, float32, falling: alpha^2 of each training timestep
    final_alpha_cumprod: float  # alpha^2 that DDIM assumes behind timestep 0
    steps_offset: int  # added to every timestep of the "leading" spacing
    spacing: "Spacing | None"  # None: each sampler's own default
    clean_from: CleanFrom


@dataclass(frozen=True)
class FlowSchedule:
    """The levels of a flow-matching checkpoint: x = (1 - sigma) * clean + sigma * noise, time = T * sigma."""

    num_train_timesteps: int  # T
    shift: float
    clean_from: CleanFrom


Schedule = NoiseSchedule | FlowSchedule
Times = npt.NDArray[np.float64]  # timesteps of a run, falling


@dataclass(frozen=True)
class Spacing:
    """Which timesteps a run visits (Lin et al. 2023, "Common Diffusion Noise Schedules", table 2)."""

    times: Callable[[NoiseSchedule, int], Times]  # of a run of that many steps
    times_before_clean: Callable[[NoiseSchedule, int], Times]  # of a method that counts the clean picture as one more
    unit_start: bool  # whether k-diffusion's methods begin at unit variance; else at k * noise, which falls short of it


def leading(schedule: NoiseSchedule, steps: int) -> Times:
    """Whole multiples of floor(T / steps) from 0, plus the offset."""
    stride = len(schedule.alphas_cumprod) // steps
    return np.arange(steps - 1, -1, -1, dtype=np.float64) * stride + schedule.steps_offset


def linspace(schedule: NoiseSchedule, steps: int) -> Times:
    """Evenly from T - 1 down to 0, both included; one step is timestep 0 (as diffusers has it)."""
    return np.linspace(0, len(schedule.alphas_cumprod) - 1, steps, dtype=np.float32)[::-1].astype(np.float64)


def trailing(schedule: NoiseSchedule, steps: int) -> Times:
    """Whole timesteps from T - 1 in strides of T / steps; the next would be -1. diffusers counts it in where a rounding
    makes the range one longer: 61, 103, 121 or 122 steps of 1000."""
    total = len(schedule.alphas_cumprod)
    times: Times = np.arange(total, 0, -total / steps)[:steps].round() - 1
    return times


def _leading_before_clean(schedule: NoiseSchedule, steps: int) -> Times:
    return leading(schedule, steps + 1)[:-1]


def _linspace_before_clean(schedule: NoiseSchedule, steps: int) -> Times:
    """Rounded to whole timesteps, in float64: halves go to the even one."""
    times: Times = np.linspace(0, len(schedule.alphas_cumprod) - 1, steps + 1).round()[:0:-1]
    return times


LEADING = Spacing(leading, _leading_before_clean, unit_start=True)
LINSPACE = Spacing(linspace, _linspace_before_clean, unit_start=False)
TRAILING = Spacing(trailing, trailing, unit_start=False)

_SPACINGS: Mapping[str | None, Spacing | None] = {None: None, "leading": LEADING, "trailing": TRAILING}
_BETA_ROOTS: Mapping[str, float] = {"linear": 1.0, "scaled_linear": 0.5}  # betas are linear in beta^root


@overload
def noise_schedule(scheduler: Scheduler) -> NoiseSchedule: ...


@overload
def noise_schedule(scheduler: FlowScheduler) -> FlowSchedule: ...


def noise_schedule(scheduler: Scheduler | FlowScheduler) -> Schedule:
    """The schedule of a card. Raises `ValueError` where it asks for one that is not built."""
    match scheduler:
        case Scheduler():
            return _diffusion(scheduler)
        case FlowScheduler():
            return _flow(scheduler)


def _diffusion(scheduler: Scheduler) -> NoiseSchedule:
    _allowed("timestep_spacing", scheduler.timestep_spacing, _SPACINGS)
    _allowed("beta_schedule", scheduler.beta_schedule, _BETA_ROOTS)
    _allowed("prediction_type", scheduler.prediction_type, CLEAN_FROM)
    root = _BETA_ROOTS[scheduler.beta_schedule]
    betas = _torch_linspace(scheduler.beta_start**root, scheduler.beta_end**root, scheduler.num_train_timesteps)
    alphas = np.float32(1) - betas ** np.float32(1 / root)
    # torch accumulates a float32 cumprod in float64 and rounds each product
    alphas_cumprod = np.cumprod(alphas, dtype=np.float64).astype(np.float32)
    alphas_cumprod.flags.writeable = False
    return NoiseSchedule(
        alphas_cumprod=alphas_cumprod,
        final_alpha_cumprod=1.0 if scheduler.set_alpha_to_one else float(alphas_cumprod[0]),
        steps_offset=scheduler.steps_offset,
        spacing=_SPACINGS[scheduler.timestep_spacing],
        clean_from=CLEAN_FROM[scheduler.prediction_type],
    )


def _flow(scheduler: FlowScheduler) -> FlowSchedule:
    if not (math.isfinite(scheduler.shift) and scheduler.shift > 0):
        raise ValueError(f"the card's scheduler has shift {scheduler.shift}; it must be a number above 0")
    if scheduler.num_train_timesteps < 2:
        raise ValueError(
            f"the card's scheduler has num_train_timesteps {scheduler.num_train_timesteps}; it must be at least 2"
        )
    return FlowSchedule(scheduler.num_train_timesteps, scheduler.shift, clean_from_flow)


def level_at(schedule: NoiseSchedule, timestep: int) -> Level:
    """The level of a whole training timestep."""
    return level_of_alpha_cumprod(float(schedule.alphas_cumprod[timestep]), float(timestep))


def level_of_alpha_cumprod(alpha_cumprod: float, time: float) -> Level:
    """The level whose alpha^2 is given."""
    return Level(alpha=math.sqrt(alpha_cumprod), sigma=math.sqrt(1 - alpha_cumprod), time=time)


def level_of_k(k: float, time: float) -> Level:
    """The level of k-diffusion's sigma k."""
    alpha = 1 / math.sqrt(1 + k * k)
    return Level(alpha=alpha, sigma=k * alpha, time=time)


def level_of_flow(schedule: FlowSchedule, sigma: float) -> Level:
    """The level of a sigma of 0 (clean) to 1 (noise alone). The product is rounded to float32, as diffusers' is."""
    time = float(np.float32(sigma) * np.float32(schedule.num_train_timesteps))
    return Level(alpha=1 - sigma, sigma=sigma, time=time)


def flow_sigmas(schedule: FlowSchedule, steps: int) -> npt.NDArray[np.float32]:
    """The sigmas of a run, falling from 1, without the 0 behind them: steps, float32, to the bit as diffusers has them.

    The ends are shifted ones already and are shifted once more with all between: diffusers' way of spacing a run.
    """
    shift, total = schedule.shift, schedule.num_train_timesteps
    ends = _shifted(np.array([total, 1], np.float32) / np.float32(total), shift)
    first, last = (float(end) * total for end in ends)
    return _shifted(np.linspace(first, last, steps) / total, shift).astype(np.float32)


def _shifted(sigmas: npt.NDArray[Any], shift: float) -> npt.NDArray[Any]:
    """Equation (23) of Esser et al. 2024 (Stable Diffusion 3), in the precision of `sigmas`."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def training_ks(schedule: NoiseSchedule) -> Array:
    """k of every training timestep, rising: t, float32."""
    ks: Array = np.sqrt((1 - schedule.alphas_cumprod) / schedule.alphas_cumprod)
    return ks


def ks_at(schedule: NoiseSchedule, times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """k at fractional timesteps: linear between the training ones, as k-diffusion's and diffusers' Euler have it."""
    ks = training_ks(schedule)
    return np.interp(times, np.arange(len(ks)), ks)


def times_of(schedule: NoiseSchedule, ks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The fractional timesteps of given ks: linear in log k between the training ones."""
    log_ks = np.log(training_ks(schedule))
    return np.interp(np.log(ks), log_ks, np.arange(len(log_ks)))


def karras_ks(k_min: float, k_max: float, steps: int) -> npt.NDArray[np.float64]:
    """EDM equation (5) with rho = 7, from k_max down to k_min; one step is k_max."""
    rho = 7.0
    ramp = np.linspace(0, 1, steps)
    ks: npt.NDArray[np.float64] = (k_max ** (1 / rho) + ramp * (k_min ** (1 / rho) - k_max ** (1 / rho))) ** rho
    return ks


def _allowed(field: str, value: object, allowed: Mapping[str, object] | Mapping[str | None, object]) -> None:
    if value not in allowed:
        names = ", ".join(str(name) for name in allowed)
        raise ValueError(
            f"the card's scheduler has {field} {value!r}; built are: {names}; export a checkpoint with one of them"
        )


def _torch_linspace(first: float, last: float, count: int) -> Array:
    """torch.linspace in float32: from both ends to the middle, each value rounded once. One ulp in a beta shows after
    1000 products."""
    start, end = np.float32(first), np.float32(last)
    stride = float((end - start) / np.float32(count - 1))
    index = np.arange(count)
    values = np.where(index < count // 2, float(start) + stride * index, float(end) - stride * (count - 1 - index))
    return values.astype(np.float32)
