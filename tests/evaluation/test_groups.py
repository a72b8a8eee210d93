"""Groups of a jackknife: in each the classes are mixed as in all samples, or there are none."""

from __future__ import annotations

import numpy as np
import pytest

from ditscope.evaluation.groups import MOST, grouped


@pytest.mark.parametrize(
    ("per_class", "groups"), [(1, 1), (2, 2), (6, 6), (10, 10), (11, 1), (12, 6), (14, 7), (30, 10)]
)
@pytest.mark.parametrize("order", ["in turn", "sorted", "shuffled"])
def test_every_group_holds_every_class_equally_often(per_class, groups, order) -> None:
    labels = np.tile([0, 1, 3, 7], per_class)
    if order == "sorted":
        labels.sort()
    if order == "shuffled":
        np.random.default_rng(0).shuffle(labels)
    found, number = grouped(len(labels), labels.tolist())
    assert number == groups == found.max() + 1
    for group in range(groups):
        counts = np.bincount(labels[found == group], minlength=8)
        assert counts[[0, 1, 3, 7]].tolist() == [per_class // groups] * 4


def test_classes_that_were_dealt_in_turn_and_not_to_the_end_have_no_groups() -> None:
    assert grouped(50, [index % 7 for index in range(50)])[1] == 1


@pytest.mark.parametrize("labels", [None, np.random.default_rng(0).integers(0, 5, 203).tolist()])
def test_samples_at_random_go_to_groups_at_random(labels) -> None:
    found, number = grouped(203, labels)
    sizes = np.bincount(found)
    assert number == MOST == len(sizes) and sizes.max() - sizes.min() == 1
    assert np.array_equal(found, grouped(203, labels)[0])  # the same ones every time
    assert not np.array_equal(found, np.arange(203) % MOST)
    assert grouped(19, None)[1] == 1
