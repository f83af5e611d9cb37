"""The noise stream against torch's CPU generator."""

import itertools
import time

import numpy as np
import pytest
import torch

from server.noise import NoiseStream

SEEDS = [0, 1, 2**31, 2**32 - 1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(4, 64, 64), (4, 48, 88), (16,), (17,), (3, 7, 11), (4, 5, 1)])
def test_consecutive_draws_are_torchs(seed: int, shape: tuple[int, ...]) -> None:
    noise, generator = NoiseStream(seed), torch.Generator().manual_seed(seed)
    for _ in range(3):
        drawn = noise.normal(shape)
        expected = torch.randn((1, *shape), generator=generator)[0].numpy()
        assert drawn.dtype == np.float32
        assert drawn.shape == shape
        assert np.abs(drawn - expected).max() < 1e-6


@pytest.mark.parametrize("seed", SEEDS)
def test_draws_of_different_shapes_share_one_stream(seed: int) -> None:
    noise, generator = NoiseStream(seed), torch.Generator().manual_seed(seed)
    for shape in [(4, 8, 8), (5, 5), (4, 64, 64), (19,), (4, 8, 8)]:
        assert np.abs(noise.normal(shape) - torch.randn(shape, generator=generator).numpy()).max() < 1e-6


def test_two_streams_of_one_seed_do_not_disturb_each_other() -> None:
    one, other = NoiseStream(5), NoiseStream(5)
    first = one.normal((4, 8, 8))
    one.normal((4, 8, 8))
    np.testing.assert_array_equal(other.normal((4, 8, 8)), first)


def test_neighbouring_seeds_are_different_pictures() -> None:
    a, b = NoiseStream(1).normal((4, 64, 64)), NoiseStream(2).normal((4, 64, 64))
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed is {seed}; it must be 0..4294967295"):
        NoiseStream(seed)


def test_fewer_than_sixteen_values_are_refused() -> None:
    with pytest.raises(ValueError, match="15 values"):
        NoiseStream(0).normal((3, 5))


def test_a_brownian_path_is_its_seeds_alone() -> None:
    fresh, used = NoiseStream(5), NoiseStream(5)
    used.normal((4, 8, 8))
    one, other = fresh.brownian((4, 8, 8)), used.brownian((4, 8, 8))
    ks = [14.6, 9.0, 8.9, 3.0, 0.5, 0.04, 0.029]
    falling = [one.between(k, k_there) for k, k_there in itertools.pairwise(ks)]
    shuffled = [other.between(ks[i], ks[i + 1]) for i in (3, 0, 5, 1, 4, 2)]
    for i, increment in zip((3, 0, 5, 1, 4, 2), shuffled, strict=True):
        np.testing.assert_array_equal(increment, falling[i])
    assert not np.array_equal(NoiseStream(6).brownian((4, 8, 8)).between(3.0, 0.5), one.between(3.0, 0.5))


def test_the_increments_of_a_brownian_path_add_up() -> None:
    path = NoiseStream(5).brownian((4, 8, 8))
    whole = np.sqrt(2.5) * path.between(3.0, 0.5)
    parts = np.sqrt(2.0) * path.between(3.0, 1.0) + np.sqrt(0.5) * path.between(1.0, 0.5)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    np.testing.assert_array_equal(path.between(0.5, 3.0), -path.between(3.0, 0.5))
    assert path.between(3.0, 0.5).dtype == np.float32


@pytest.mark.parametrize(
    ("k", "k_there"), [(14.6, 13.0), (157.0, 100.0), (13.0, 12.87), (0.0305, 0.0298), (0.04, 0.029)]
)
def test_the_increments_of_a_brownian_path_are_standard_normal_and_independent(k: float, k_there: float) -> None:
    """The closest levels of 200 steps are 1 % apart: not within one interval of the tree."""
    path = NoiseStream(8).brownian((4, 96, 96))
    here, beyond = path.between(k, k_there).ravel(), path.between(k_there, k_there / 2).ravel()
    count = len(here)
    assert abs(here.mean()) < 4 / np.sqrt(count)
    assert here.var() == pytest.approx(1, abs=4 * np.sqrt(2 / count) + 0.01)
    assert np.mean(here**4) == pytest.approx(3, abs=0.35)
    assert abs(np.corrcoef(here, beyond)[0, 1]) < 4 / np.sqrt(count)
    assert abs(np.corrcoef(here[:-1], here[1:])[0, 1]) < 4 / np.sqrt(count)
    assert abs(np.corrcoef(here, NoiseStream(8).normal((4, 96, 96)).ravel())[0, 1]) < 4 / np.sqrt(count)


def test_a_brownian_path_has_any_number_of_values() -> None:
    path = NoiseStream(0).brownian((3, 5))
    assert path.between(3.0, 2.0).shape == (3, 5)


@pytest.mark.parametrize("k", [0.0, -1.0, 70000.0, float("nan")])
def test_a_level_beyond_the_path_is_refused(k: float) -> None:
    with pytest.raises(ValueError, match=f"k is {k}; it must be above 0 and at most 65536"):
        NoiseStream(0).brownian((4, 4)).between(k, 1.0)


def test_a_brownian_path_is_the_one_it_was() -> None:
    """A seed's picture must outlive this version: Philox, the keys and the tree are part of the contract."""
    values = NoiseStream(1234).brownian((2, 8)).between(13.7, 6.1).ravel()[:4]
    np.testing.assert_allclose(values, [-0.520032, -0.763561, 0.348325, 0.527989], atol=1e-5)


def test_a_draw_for_a_512_pixel_picture_takes_under_two_milliseconds() -> None:
    noise = NoiseStream(0)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        noise.normal((4, 64, 64))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.002  # the best of 20: a busy machine is not the draw's fault
