"""A run's latents are the same bits whatever runs beside it."""

from collections.abc import Generator

from samplers.references import CARD, SHAPE, mixture_model

from server.levels import Array, noise_schedule
from server.noise import NoiseStream
from server.samplers import SAMPLERS
from server.samplers.base import Estimate

SCHEDULE, MODEL = noise_schedule(CARD), mixture_model(CARD)
RUNS = [(name, seed) for name in SAMPLERS for seed in (1, 2)]


def evaluations(name: str, seed: int) -> Generator[None, None, Array]:
    """A run that stops after every evaluation."""
    noise = NoiseStream(seed)
    trajectory = SAMPLERS[name].trajectory(SCHEDULE, 4 + seed)
    sampling = SAMPLERS[name].run(trajectory.start_scale * noise.normal(SHAPE), trajectory.steps, noise)
    x, level = next(sampling)
    while True:
        raw = MODEL(x, level.time)
        yield
        try:
            x, level = sampling.send(Estimate(x, SCHEDULE.clean_from(raw, x, level), raw, SCHEDULE.clean_from))
        except StopIteration as end:
            latents: Array = end.value
            return latents


def in_turns(runs: list[tuple[str, int]]) -> dict[tuple[str, int], bytes]:
    """One evaluation of each, then the next of each, to the end of the longest."""
    latents: dict[tuple[str, int], bytes] = {}
    running = {run: evaluations(*run) for run in runs}
    while running:
        for run, generator in list(running.items()):
            try:
                next(generator)
            except StopIteration as end:
                latents[run] = end.value.tobytes()
                del running[run]
    return latents


def test_all_samplers_in_turns_give_the_bits_that_each_gives_alone() -> None:
    together = in_turns(RUNS)
    assert together == in_turns(RUNS[::-1])
    assert together == {run: in_turns([run])[run] for run in RUNS}
    assert len(set(together.values())) == len(RUNS)
