"""Spectral clustering: against a dense solver and by definition, and on graphs of known parts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditscope.analysis.spectral import clustered, count_by_gap, leading, normalised_cut


def blocks(sizes, outside=0.02, seed=0):
    """A graph of tight groups with weak random ties between them, in shuffled order."""
    random = np.random.default_rng(seed)
    part = np.repeat(np.arange(len(sizes)), sizes)
    random.shuffle(part)
    ties = outside * random.random((len(part),) * 2)
    ties += (part[:, None] == part) * (0.5 + random.random((len(part),) * 2))
    return (ties + ties.T) / 2, part


def same_parts(one, other):
    pairs = set(zip(one.tolist(), other.tolist(), strict=True))
    return len(pairs) == len(set(one.tolist())) == len(set(other.tolist()))


def test_eigenvalues_and_vectors_are_those_of_the_normalised_graph():
    ties, _ = blocks([7, 5, 9])
    degree = ties.sum(1)
    whole = ties / np.sqrt(degree[:, None] * degree)
    expected = np.linalg.eigvalsh(whole)[::-1]
    values, vectors = leading(ties, 6)
    np.testing.assert_allclose(values, expected[:6], atol=1e-10)
    np.testing.assert_allclose(whole @ vectors, vectors * values, atol=1e-10)
    assert (vectors[np.abs(vectors).argmax(0), range(6)] > 0).all()
    assert values[0] == pytest.approx(1)


def test_more_vectors_than_patches_are_all_of_them():
    assert len(leading(np.ones((3, 3)), 9)[0]) == 3


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(4, 12), min_size=2, max_size=6), st.integers(0, 99))
def test_tight_groups_are_found_and_counted(sizes, seed):
    ties, part = blocks(sizes, seed=seed)
    values, vectors = leading(ties, 9)
    assert count_by_gap(values) == len(sizes)
    assert same_parts(clustered(vectors, len(sizes)), part)


def test_rows_that_coincide_are_one_part():
    _, vectors = leading(np.ones((6, 6)), 1)
    assert set(clustered(vectors, 1)) == {0}
    assert set(clustered(np.ones((6, 3)), 3)) == {0}


def test_the_cut_is_its_definition():
    ties, part = blocks([4, 6, 5], outside=0.3)
    expected = 0.0
    for name in range(3):
        out = sum(
            ties[i, j] for i in range(15) for j in range(15) if part[i] == name and part[j] != name
        )
        expected += out / sum(ties[i].sum() for i in range(15) if part[i] == name)
    assert normalised_cut(ties, part) == pytest.approx(expected)
    assert normalised_cut(ties, np.zeros(15, int)) == 0
