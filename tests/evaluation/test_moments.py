"""Streaming moments against numpy's, on all rows at once."""

from __future__ import annotations

import numpy as np
import pytest

from ditscope.errors import BadRequest
from ditscope.evaluation.moments import GroupedMoments, Moments


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_any_partition_gives_the_moments_of_all_rows(batch: int, offset: float) -> None:
    rows = np.random.default_rng(0).normal(size=(203, 6)) * [1, 2, 0.1, 5, 1, 3] + offset
    grouped = GroupedMoments(6, 10)
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        grouped.add(part, np.arange(first, first + len(part)) % 10)
    total = grouped.total()
    assert total.count == 203
    np.testing.assert_allclose(total.mean, rows.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(total.covariance, np.cov(rows.T), rtol=0, atol=2e-11 * (1 + offset))


def test_every_group_can_be_left_out() -> None:
    rng = np.random.default_rng(1)
    rows, groups = rng.normal(size=(47, 3)), rng.permutation(47) % 4
    for batch in (5, 47):
        grouped = GroupedMoments(3, 4)
        for first in range(0, 47, batch):
            grouped.add(rows[first : first + batch], groups[first : first + batch])
        for index, without in enumerate(grouped.without_each()):
            own, others = rows[groups == index], rows[groups != index]
            np.testing.assert_allclose(grouped.groups[index].mean, own.mean(axis=0), atol=1e-14)
            assert without.count == len(others)
            np.testing.assert_allclose(without.covariance, np.cov(others.T), atol=1e-13)


def test_float32_features_are_summed_in_float64() -> None:
    rows = (np.random.default_rng(2).normal(size=(5000, 2)) + 1000).astype(np.float32)
    grouped = GroupedMoments(2, 1)
    for part in np.array_split(rows, 50):
        grouped.add(part, np.zeros(len(part), int))
    assert np.allclose(grouped.total().covariance, np.cov(rows.astype(float).T), rtol=1e-10)


def test_one_picture_has_no_covariance() -> None:
    with pytest.raises(BadRequest, match="1 pictures have no covariance"):
        _ = Moments.of(np.ones((1, 3))).covariance
