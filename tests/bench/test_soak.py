"""Variants that come and go answer as they always did, and leave nothing behind; `make soak` goes on for longer."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench import soak
from bench.soak import Counts, Soaked


async def test_variants_come_and_go_under_traffic_without_a_wrong_answer_and_what_grew_would_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = soak.wrong
    monkeypatch.setattr(soak, "wrong", lambda *seen: [*wrong(*seen), "one more"])
    async with soak.composed(tmp_path) as bench:
        with pytest.raises(AssertionError, match=r"^one more"):  # and nothing else
            await soak.soak(bench, 8)


RIGHT = Counts(processes=4, regions=3, known=15, disk=1000, folders=5, gateway=10**8, triton=10**8, builder=10**8)
SEEN = Soaked(50, 20, 20, 10, RIGHT, RIGHT, steps=900, longest_gap=0.3, usual_step=0.1)


@pytest.mark.parametrize(
    ("field", "number", "told"),
    [
        ("processes", 5, "processes: 5, at most 4"),
        ("regions", 4, "regions of shared memory: 4, at most 3"),
        ("known", 18, "known engines: 18, at most 17"),
        ("folders", 6, "variants on disk: 6, at most 5"),
        ("gateway", 10**8 + soak.GROWTH + 1, "bytes of the gateway: 116777217, at most 116777216"),
        ("triton", 2 * 10**8, "bytes of the triton"),
        ("builder", 2 * 10**8, "bytes of the builder"),
    ],
)
def test_a_soak_says_what_grew(field: str, number: int, told: str) -> None:
    assert soak.wrong(SEEN, loaded=2, plain=5) == []
    (found,) = soak.wrong(replace(SEEN, last=replace(RIGHT, **{field: number})), loaded=2, plain=5)
    assert found.startswith(told)


def test_a_soak_that_exercised_too_little_says_so() -> None:
    assert len(soak.wrong(replace(SEEN, built=5, from_disk=0, from_memory=0, steps=50), loaded=2, plain=5)) == 3
