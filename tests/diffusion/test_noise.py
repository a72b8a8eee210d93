"""Noise belongs to the sample: not to the batch, the order, or the process it is drawn in."""

from __future__ import annotations

import pytest
import torch

from ditscope.diffusion.noise import SampleNoise, sample_seed
from ditscope.errors import BadRequest


def test_seeds_are_a_fixed_function() -> None:
    """The numbers are a promise: recorded runs are replayed from (seed, index)."""
    assert [sample_seed(0, index) for index in range(3)] == [
        7896617691693857887,
        2918264622725855778,
        8597659618385908031,
    ]
    assert sample_seed(7, 1) == 3317731564112288844
    seeds = {sample_seed(seed, index) for seed in range(40) for index in range(40)}
    assert len(seeds) == 1600 and all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(2**70, 2**40) >= 0


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1)])
def test_negative_is_refused(seed: int, index: int) -> None:
    with pytest.raises(BadRequest, match="-1"):
        sample_seed(seed, index)


def test_sample_7_gets_the_same_noise_in_any_batch() -> None:
    alone = SampleNoise([sample_seed(3, 7)])
    among = SampleNoise([sample_seed(3, index) for index in (2, 7, 9)])
    for _ in range(3):
        draw, draws = alone((1, 4, 5, 3)), among((3, 4, 5, 3))
        assert draw.dtype == torch.float32 and draws.shape == (3, 4, 5, 3)
        assert torch.equal(draw[0], draws[1])
        assert not torch.equal(draws[0], draws[1])


def test_it_is_standard_normal_and_never_repeats() -> None:
    noise = SampleNoise([1, 2])
    first, second = noise((2, 4, 32, 32)), noise((2, 4, 32, 32))
    assert abs(first.mean()) < 0.04 and abs(first.std() - 1) < 0.03
    assert abs((first * second).mean()) < 0.04


def test_the_global_generator_is_not_touched() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    SampleNoise([1])((1, 2, 2, 2))
    assert torch.equal(before, torch.get_rng_state())


def test_a_shape_for_other_samples_is_refused() -> None:
    with pytest.raises(BadRequest, match="noise for 3 rows"):
        SampleNoise([1, 2])((3, 1, 1, 1))
