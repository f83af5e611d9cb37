"""What a plan would run, and how long that takes by what has been measured. Runs nothing; knows no network by name."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from server.engines.port import Spec
from server.meter import Shape
from server.plan import Plan

Seconds = Callable[[str, Shape], float | None]  # that a call of a network takes; None where it has never run


@dataclass(frozen=True)
class Explanation:
    """Of a plan."""

    executions: Mapping[str, int]  # of each network, for all pictures
    seconds: float  # on an idle service, networks loaded; without those of `unmeasured`
    unmeasured: tuple[str, ...]  # networks whose time is not known yet


def explain(plan: Plan, seconds: Seconds) -> Explanation:
    """Networks run one after the other for a picture, and each is given the rows of all pictures together."""
    specs = {spec.name: spec for spec in (*plan.engine.specs, *plan.engine.templates)}
    counts: dict[str, int] = {}
    times: dict[str, float | None] = {}
    for name, count in plan.executions.items():
        graph = specs[name]
        runs = plan.variants[name].spec if name in plan.variants else graph
        time = _seconds(plan, runs, count, seconds)
        counts[runs.name] = count
        # Other weights take no other time: the graph with its own tells it, too.
        times[runs.name] = _seconds(plan, graph, count, seconds) if time is None else time
    return Explanation(
        executions=counts,
        seconds=sum(time for time in times.values() if time is not None),
        unmeasured=tuple(name for name, time in times.items() if time is None),
    )


def _seconds(plan: Plan, spec: Spec, count: int, seconds: Seconds) -> float | None:
    """Of all executions of a network. What every picture needs, the pictures need at the same moment."""
    row_size, pictures = _row_size(plan, spec), len(plan.seeds)
    rows = min(2 if plan.guided else 1, spec.max_rows)  # of an execution
    together = spec.max_rows // rows  # executions in a call at most
    rounds, alone = divmod(count, pictures)
    full, rest = divmod(pictures, together)
    calls = {together: rounds * full, rest: rounds}
    calls[1] = calls.get(1, 0) + alone
    times = {
        joined: seconds(spec.name, Shape(joined * rows, row_size))
        for joined, number in calls.items()
        if joined > 0 and number > 0
    }
    known = [calls[joined] * time for joined, time in times.items() if time is not None]
    return sum(known) if len(known) == len(times) else None


def _row_size(plan: Plan, spec: Spec) -> int:
    """Numbers in a row of a network's first input, see `Shape`."""
    pixels_per_latent = plan.engine.card.pixels_per_latent
    axes = {
        "height": plan.size.height // pixels_per_latent,
        "width": plan.size.width // pixels_per_latent,
        "picture_height": plan.size.height,
        "picture_width": plan.size.width,
    }
    lengths = spec.inputs[0].shape[1:]
    return math.prod(axes[length] if isinstance(length, str) else length for length in lengths)
