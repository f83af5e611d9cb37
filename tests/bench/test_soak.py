"""Variants that come and go answer as they always did, and leave nothing behind; `make soak` goes on for longer."""

from pathlib import Path

import pytest

from bench import soak
from server.catalog import read_catalog

GROWTH = 16 * 2**20  # bytes: allocators keep what they were given; a leak of a variant's weights is more in ten cycles


@pytest.mark.parametrize("cycles", [8, pytest.param(50, marks=pytest.mark.thorough)])
async def test_variants_come_and_go_under_traffic_without_a_wrong_answer_and_without_growth(
    tmp_path: Path, cycles: int
) -> None:
    async with soak.composed(tmp_path) as bench:
        seen = await soak.soak(bench, cycles)
        needed = len(bench.home.needed) + len(bench.home.idle)
    assert seen.built >= soak.SETS
    assert seen.from_disk + seen.from_memory > 0
    assert seen.steps > seen.cycles  # of others, all right
    assert needed <= 2
    assert seen.last.processes == 2 + needed  # Triton, the plain UNet's, and one a variant
    assert seen.last.regions == 1 + needed
    plain = len(read_catalog(soak.REPOSITORY)["sd15"].specs)
    assert seen.last.known <= 2 * (plain + needed) + 3  # the plain engines twice, variants twice, what is under way
    assert seen.last.folders <= soak.SETS - 1
    for process in ("gateway", "triton", "builder"):
        assert getattr(seen.last, process) - getattr(seen.settled, process) < GROWTH, process
