"""PNDM: Liu, Ren, Lin, Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds" (2022), as Stable Diffusion
runs it: without the Runge-Kutta start (diffusers' `skip_prk_steps`)."""

from collections.abc import Sequence

from server.levels import Array
from server.noise import NoiseStream
from server.samplers.base import Sampler, Sampling, Step, move
from server.samplers.ddim import ddim_trajectory

# The Adams-Bashforth methods of orders 1 to 4 for even steps, newest first: the paper's equation (12) is the last.
_WEIGHTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def pndm(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
    """A linear multistep method on the model's raw outputs, then DDIM's transfer: the paper's phi, equation (11). The
    first step has no outputs to go by and looks at its end as well (an improved Euler step)."""
    raws: tuple[Array, ...] = ()  # newest first, at most four
    for number, step in enumerate(steps):
        estimate = yield x, step.here
        raws = (estimate.raw, *raws[:3])
        if number == 0 and len(steps) > 1:
            end = yield move(estimate.x, estimate.clean, step.here, step.there), step.there
            raw = (estimate.raw + end.raw) / 2
        else:
            weighted = [weight * raw for weight, raw in zip(_WEIGHTS[len(raws) - 1], raws, strict=True)]
            raw = sum(weighted[1:], start=weighted[0])
        clean = estimate.clean_from(raw, estimate.x, step.here)
        x = move(estimate.x, clean, step.here, step.there)
    return x


def _evaluations(steps: Sequence[Step]) -> int:
    """The first of several steps takes two."""
    return len(steps) + (len(steps) > 1)


PNDM = Sampler(
    name="PNDM",
    paper="Liu, Ren, Lin, Zhao 2022, arXiv 2202.09778, equations (11) and (12)",
    order=2,  # the paper's: the weights are those of even steps, and the steps are even in time only
    max_steps=200,
    trajectory=ddim_trajectory,
    evaluations=_evaluations,
    run=pndm,
)
