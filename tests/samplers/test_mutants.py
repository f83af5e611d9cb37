"""What the comparison with diffusers would say of a sampler with a term missing: it must be far out of tolerance."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from samplers.references import CARD, difference, ours, theirs
from samplers.test_parity import TOLERANCE

from server.levels import CLEAN, Array, clean_from_eps
from server.noise import NoiseStream
from server.samplers import SAMPLERS
from server.samplers.base import Sampler, Sampling, Step, Trajectory
from server.samplers.ddim import ddim
from server.samplers.dpm_2 import dpm_2
from server.samplers.dpm_solver_multistep import dpm_solver_pp_2m
from server.samplers.euler_ancestral import euler_ancestral
from server.samplers.heun import heun

Change = Callable[[Trajectory], Trajectory]
Run = Callable[[Array, Sequence[Step], NoiseStream], Sampling]


def of(name: str) -> Any:
    return SAMPLERS[name].trajectory


def changed(name: str, change: Change) -> dict[str, Any]:
    return {"trajectory": lambda schedule, steps: change(SAMPLERS[name].trajectory(schedule, steps))}


def ends_clean(trajectory: Trajectory) -> Trajectory:
    return replace(trajectory, steps=(*trajectory.steps[:-1], replace(trajectory.steps[-1], there=CLEAN)))


def told_whole(trajectory: Trajectory) -> Trajectory:
    """The model is told whole timesteps."""
    steps = (replace(step, here=replace(step.here, time=round(step.here.time))) for step in trajectory.steps)
    return replace(trajectory, steps=tuple(steps))


def unit_start(trajectory: Trajectory) -> Trajectory:
    return replace(trajectory, start_scale=1.0)


def once(trajectory: Trajectory) -> Trajectory:
    """One evaluation a step."""
    return replace(trajectory, steps=tuple(replace(step, via=()) for step in trajectory.steps))


def at_the_end(trajectory: Trajectory) -> Trajectory:
    """The second evaluation where the step ends, not in its middle."""
    steps = (replace(step, via=(step.there,) if step.via else ()) for step in trajectory.steps)
    return replace(trajectory, steps=tuple(steps))


def silent(run: Run) -> Run:
    """Without fresh noise."""

    class Silent(NoiseStream):
        def normal(self, shape: tuple[int, ...]) -> Array:
            return np.zeros(shape, np.float32)

        def brownian(self, shape: tuple[int, ...]) -> Any:
            return self

        def between(self, k: float, k_there: float) -> Array:
            return np.zeros(1, np.float32)

    return lambda x, steps, noise: run(x, steps, Silent(0))


def fresh_each_time(run: Run) -> Run:
    """A Brownian method whose noise in the middle of a step has nothing to do with that at its end."""

    class Fresh(NoiseStream):
        def brownian(self, shape: tuple[int, ...]) -> Any:
            self.shape = shape
            return self

        def between(self, k: float, k_there: float) -> Array:
            return self.normal(self.shape)

    return lambda x, steps, noise: run(x, steps, Fresh(0))


def eps_combined(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
    """PNDM that combines the noises that the model's outputs mean instead of the outputs."""
    sampling = SAMPLERS["PNDM"].run(x, steps, noise)
    x, level = next(sampling)
    while True:
        estimate = yield x, level
        eps = (estimate.x - level.alpha * estimate.clean) / level.sigma
        try:
            x, level = sampling.send(replace(estimate, raw=eps, clean_from=clean_from_eps))
        except StopIteration as end:
            return np.asarray(end.value)


def started_anew(every: int, run: Run) -> Run:
    """A multistep method that forgets after so many steps."""

    def anew(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
        for i in range(0, len(steps), every):
            x = yield from run(x, steps[i : i + every], noise)
        return x

    return anew


RUN: dict[str, Run] = {name: sampler.run for name, sampler in SAMPLERS.items()}
MUTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM's last level": ("DDIM", changed("DDIM", ends_clean)),
    "PNDM's multistep": ("PNDM", {"run": ddim}),
    "PNDM's fourth output": ("PNDM", {"run": started_anew(4, RUN["PNDM"])}),
    "PNDM's last level": ("PNDM", changed("PNDM", ends_clean)),
    "LMS's multistep": ("LMS", {"run": ddim}),
    "LMS's fourth slope": ("LMS", {"run": started_anew(3, RUN["LMS"])}),
    "KLMS's Karras levels": ("KLMS", {"trajectory": of("LMS")}),
    "KLMS's fractions of timesteps": ("KLMS", changed("KLMS", told_whole)),
    "DDPM's fresh noise": ("DDPM", {"run": silent(RUN["DDPM"])}),
    "DDPM's step below the level": ("DDPM", {"run": ddim}),
    "DDPM's last level": ("DDPM", {"trajectory": of("DDIM")}),
    "HEUN's second slope": ("HEUN", changed("HEUN", once)),
    "HEUN's first slope": ("HEUN", {"run": dpm_2}),
    "K_HEUN's Karras levels": ("K_HEUN", {"trajectory": of("HEUN")}),
    "K_EULER's fractions of timesteps": ("K_EULER", changed("K_EULER", told_whole)),
    "K_EULER's start scale": ("K_EULER", changed("K_EULER", unit_start)),
    "K_EULER_ANCESTRAL's fresh noise": ("K_EULER_ANCESTRAL", {"run": silent(RUN["K_EULER_ANCESTRAL"])}),
    "K_EULER_ANCESTRAL's step below the level": ("K_EULER_ANCESTRAL", {"run": ddim}),
    "DPM_SOLVER_MULTISTEP's second order": ("DPM_SOLVER_MULTISTEP", {"run": ddim}),
    "DPM_SOLVER_MULTISTEP's levels": ("DPM_SOLVER_MULTISTEP", {"trajectory": of("K_EULER")}),
    "2M's second order": ("DPM_PLUS_PLUS_2M_KARRAS", {"run": ddim}),
    "2M's Karras levels": ("DPM_PLUS_PLUS_2M_KARRAS", {"trajectory": of("DPM_SOLVER_MULTISTEP")}),
    "2M SDE's second order": ("DPM_PLUS_PLUS_2M_SDE", {"run": euler_ancestral}),
    "2M SDE's step below the level": ("DPM_PLUS_PLUS_2M_SDE", {"run": dpm_solver_pp_2m}),
    "2M SDE's fresh noise": ("DPM_PLUS_PLUS_2M_SDE", {"run": silent(RUN["DPM_PLUS_PLUS_2M_SDE"])}),
    "2M SDE Karras's levels": ("DPM_PLUS_PLUS_2M_SDE_KARRAS", {"trajectory": of("DPM_PLUS_PLUS_2M_SDE")}),
    "2S's second order": ("DPM_SINGLE", {"run": ddim}),
    "2S's first step of a pair": ("DPM_SINGLE", {"run": dpm_solver_pp_2m}),
    "DPM_2's middle": ("DPM_2", changed("DPM_2", at_the_end)),
    "DPM_2's slope": ("DPM_2", {"run": heun}),
    "DPM_2_KARRAS's levels": ("DPM_2_KARRAS", {"trajectory": of("DPM_2")}),
    "DPM_2_ANCESTRAL's fresh noise": ("DPM_2_ANCESTRAL", {"run": silent(RUN["DPM_2_ANCESTRAL"])}),
    "DPM_2_ANCESTRAL's step below the level": ("DPM_2_ANCESTRAL", {"run": dpm_2}),
    "DPM_2_ANCESTRAL's middle": ("DPM_2_ANCESTRAL", {"trajectory": of("DPM_2")}),
    "DPM_2_ANCESTRAL_KARRAS's levels": ("DPM_2_ANCESTRAL_KARRAS", {"trajectory": of("DPM_2_ANCESTRAL")}),
    "SDE's path": ("DPM_PLUS_PLUS_SDE_KARRAS", {"run": silent(RUN["DPM_PLUS_PLUS_SDE_KARRAS"])}),
    "SDE's one path for middle and end": (
        "DPM_PLUS_PLUS_SDE_KARRAS",
        {"run": fresh_each_time(RUN["DPM_PLUS_PLUS_SDE_KARRAS"])},
    ),
    "SDE's middle": ("DPM_PLUS_PLUS_SDE_KARRAS", changed("DPM_PLUS_PLUS_SDE_KARRAS", at_the_end)),
    "UNI_PC's corrector": ("UNI_PC", {"run": dpm_solver_pp_2m}),
    "UNI_PC's second order corrector": ("UNI_PC", {"run": started_anew(2, RUN["UNI_PC"])}),
    "LCM's fresh noise": ("LCM", {"run": silent(RUN["LCM"])}),
    "LCM's levels": ("LCM", {"trajectory": of("DDPM")}),
}


@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_a_sampler_without_one_of_its_terms_is_far_out_of_tolerance(mutant: str, steps: int) -> None:
    name, change = MUTANTS[mutant]
    mutated: Sampler = replace(SAMPLERS[name], **change)
    assert difference(ours(mutated, CARD, steps, 7), theirs(name, SAMPLERS[name], CARD, steps, 7)) > 10 * TOLERANCE


def test_pndm_combines_what_a_v_model_says_and_not_the_noise_it_means() -> None:
    card, pndm = replace(CARD, prediction_type="v_prediction"), SAMPLERS["PNDM"]
    mutated = replace(pndm, run=eps_combined)
    assert difference(ours(mutated, card, 20, 7), theirs("PNDM", pndm, card, 20, 7)) > 10 * TOLERANCE


def test_every_sampler_has_a_mutant() -> None:
    assert {name for name, _ in MUTANTS.values()} == set(SAMPLERS)
