"""Noise schedules, spacings and the turning of raw outputs into clean images."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from diffusers import PNDMScheduler

from server.levels import (
    CLEAN_FROM,
    LEADING,
    LINSPACE,
    TRAILING,
    NoiseSchedule,
    Scheduler,
    clean_from_eps,
    clean_from_v,
    karras_ks,
    ks_at,
    leading,
    level_at,
    level_of_k,
    linspace,
    noise_schedule,
    times_of,
    trailing,
    training_ks,
)
from server.noise import NoiseStream

SD15 = Scheduler(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="epsilon",
    steps_offset=1,
    set_alpha_to_one=False,
)


@pytest.fixture
def schedule() -> NoiseSchedule:
    return noise_schedule(SD15)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("betas", [(0.00085, 0.012), (0.0001, 0.02)])
@pytest.mark.parametrize("timesteps", [1000, 999])
def test_alphas_cumprod_are_diffusers_to_the_bit(
    beta_schedule: str, betas: tuple[float, float], timesteps: int
) -> None:
    card = replace(
        SD15, beta_schedule=beta_schedule, beta_start=betas[0], beta_end=betas[1], num_train_timesteps=timesteps
    )
    reference = PNDMScheduler(
        num_train_timesteps=timesteps, beta_start=betas[0], beta_end=betas[1], beta_schedule=beta_schedule
    )
    np.testing.assert_array_equal(noise_schedule(card).alphas_cumprod, reference.alphas_cumprod.numpy())


def test_the_level_behind_timestep_0_follows_set_alpha_to_one(schedule: NoiseSchedule) -> None:
    assert schedule.final_alpha_cumprod == float(schedule.alphas_cumprod[0])
    assert noise_schedule(replace(SD15, set_alpha_to_one=True)).final_alpha_cumprod == 1.0


@pytest.mark.parametrize(
    ("field", "value", "built"),
    [
        ("beta_schedule", "squaredcos_cap_v2", "linear, scaled_linear"),
        ("prediction_type", "sample", "epsilon, v_prediction"),
        ("timestep_spacing", "linspace", "None, leading, trailing"),
    ],
)
def test_a_schedule_that_is_not_built_is_refused_with_what_is(field: str, value: str, built: str) -> None:
    changes: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=f"{field} '{value}'; built are: {built}"):
        noise_schedule(replace(SD15, **changes))


def test_leading_spacing_counts_whole_strides_from_the_offset(schedule: NoiseSchedule) -> None:
    assert leading(schedule, 4).tolist() == [751, 501, 251, 1]
    assert leading(schedule, 3).tolist() == [667, 334, 1]
    assert leading(schedule, 1).tolist() == [1]


def test_linspace_spacing_holds_both_ends(schedule: NoiseSchedule) -> None:
    assert linspace(schedule, 3).tolist() == [999, 499.5, 0]
    assert linspace(schedule, 1).tolist() == [0]


@pytest.mark.parametrize("timesteps", [1000, 999])
def test_trailing_spacing_begins_at_the_end_and_has_as_many_timesteps_as_steps(timesteps: int) -> None:
    schedule = noise_schedule(replace(SD15, num_train_timesteps=timesteps))
    assert trailing(schedule, 4).tolist() == pytest.approx(
        [timesteps * share / 4 - 1 for share in (4, 3, 2, 1)], abs=0.6
    )
    assert trailing(schedule, 1).tolist() == [timesteps - 1]
    for steps in range(1, 201):  # 61, 103, 121, 122 of 1000 are one too many in diffusers
        times = trailing(schedule, steps)
        assert len(times) == steps
        assert times[0] == timesteps - 1
        assert times[-1] >= 0
        assert np.all(np.diff(times) < 0)


def test_the_spacings_before_clean_leave_out_timestep_0(schedule: NoiseSchedule) -> None:
    assert LINSPACE.times_before_clean(schedule, 2).tolist() == [999, 500]
    assert LEADING.times_before_clean(schedule, 3).tolist() == [751, 501, 251]
    assert TRAILING.times_before_clean(schedule, 4).tolist() == [999, 749, 499, 249]


def test_karras_levels_run_from_the_largest_to_the_smallest_k() -> None:
    ks = karras_ks(0.03, 14.6, 10)
    assert ks[0] == pytest.approx(14.6)
    assert ks[-1] == pytest.approx(0.03)
    assert np.all(np.diff(ks) < 0)
    np.testing.assert_allclose(np.diff(ks ** (1 / 7)), np.diff(ks ** (1 / 7))[0])  # even in k^(1/7)
    assert karras_ks(0.03, 14.6, 1).tolist() == pytest.approx([14.6])


def test_times_and_ks_are_each_others_inverse_at_training_timesteps(schedule: NoiseSchedule) -> None:
    times = np.array([0.0, 1.0, 500.0, 998.0, 999.0])
    np.testing.assert_allclose(times_of(schedule, ks_at(schedule, times)), times, atol=1e-3)
    np.testing.assert_allclose(ks_at(schedule, np.array([10.5])), training_ks(schedule)[10:12].mean(), rtol=1e-6)


def test_a_level_has_unit_variance_and_the_same_k_in_both_forms(schedule: NoiseSchedule) -> None:
    level = level_at(schedule, 600)
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1.0)
    assert level_of_k(level.k, 600.0).alpha == pytest.approx(level.alpha)
    assert level.k == pytest.approx(float(training_ks(schedule)[600]), rel=1e-6)


@pytest.mark.parametrize("timestep", [0, 300, 700, 999])
def test_each_kind_of_prediction_gives_the_clean_image_back(schedule: NoiseSchedule, timestep: int) -> None:
    level, stream = level_at(schedule, timestep), NoiseStream(0)
    clean, eps = stream.normal((4, 8, 8)), stream.normal((4, 8, 8))
    x = level.alpha * clean + level.sigma * eps
    v = level.alpha * eps - level.sigma * clean
    # one float32 rounding of x weighs 1 / alpha
    np.testing.assert_allclose(clean_from_eps(eps, x, level), clean, atol=1e-6 / level.alpha)
    np.testing.assert_allclose(clean_from_v(v, x, level), clean, atol=1e-6)
    assert clean_from_eps(eps, x, level).dtype == clean_from_v(v, x, level).dtype == np.float32


def test_the_card_chooses_the_conversion(schedule: NoiseSchedule) -> None:
    assert schedule.clean_from is clean_from_eps
    assert noise_schedule(replace(SD15, prediction_type="v_prediction")).clean_from is clean_from_v
    assert CLEAN_FROM.keys() == {"epsilon", "v_prediction"}
