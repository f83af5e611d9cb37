"""Times of executions: what is remembered, and what follows for a shape that has not run."""

import pytest

from server.meter import MOST_SHAPES, Meter, Shape


def test_a_network_that_has_not_run_has_no_time() -> None:
    meter = Meter()
    meter.record("unet", Shape(2, 100), 1.0)
    assert meter.seconds("decoder", Shape(2, 100)) is None


def test_later_calls_outweigh_a_slow_first_one() -> None:
    meter = Meter()
    meter.record("unet", Shape(2, 100), 5.0)
    assert meter.seconds("unet", Shape(2, 100)) == 5.0
    for _ in range(10):
        meter.record("unet", Shape(2, 100), 0.1)
    assert meter.seconds("unet", Shape(2, 100)) == pytest.approx(0.1 + 4.9 * 0.7**10)


def test_a_shape_that_has_not_run_is_scaled_from_the_nearest_one_that_has() -> None:
    meter = Meter()
    meter.record("unet", Shape(2, 100), 1.0)
    meter.record("unet", Shape(16, 100), 4.0)  # many rows are cheaper each
    meter.record("unet", Shape(2, 1600), 40.0)
    assert meter.seconds("unet", Shape(1, 100)) == 0.5
    assert meter.seconds("unet", Shape(8, 100)) == 2.0
    assert meter.seconds("unet", Shape(2, 800)) == 20.0


def test_the_number_of_shapes_is_bounded_and_the_one_measured_longest_ago_goes() -> None:
    meter = Meter()
    for rows in range(1, MOST_SHAPES + 1):
        meter.record("unet", Shape(rows, 100), 1.0)
    meter.record("unet", Shape(1, 100), 1.0)
    meter.record("unet", Shape(1000, 100), 1.0)
    assert meter.seconds("unet", Shape(1, 100)) == 1.0
    assert meter.seconds("unet", Shape(2, 100)) == pytest.approx(2 / 3), "forgotten, and scaled from 3 rows"
