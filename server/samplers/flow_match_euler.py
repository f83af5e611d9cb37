"""Euler on a rectified flow: Esser et al., "Scaling Rectified Flow Transformers" (2024), as Stable Diffusion 3 is run.

The only sampler of flow-matching checkpoints, and no choice of a request: hence not in the registry.
"""

from server.levels import FlowSchedule, flow_sigmas, level_of_flow
from server.samplers.base import Sampler, Trajectory, in_steps, once_each_level
from server.samplers.ddim import ddim


def _trajectory(schedule: FlowSchedule, steps: int) -> Trajectory:
    """The first level is noise alone, the last the clean picture."""
    sigmas = (*flow_sigmas(schedule, steps).tolist(), 0.0)
    return Trajectory(in_steps(level_of_flow(schedule, sigma) for sigma in sigmas), start_scale=1.0)


FLOW_MATCH_EULER = Sampler(
    name="FLOW_MATCH_EULER",
    paper="Esser et al. 2024, arXiv 2403.03206; Lipman et al. 2023, arXiv 2210.02747",
    order=1,
    max_steps=200,
    trajectory=_trajectory,
    evaluations=once_each_level,
    run=ddim,  # an Euler step along the velocity keeps clean picture and noise, which is DDIM's move
)
