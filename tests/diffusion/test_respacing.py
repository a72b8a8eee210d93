"""Kept timesteps equal the published lists; what no list exists for is refused with advice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ditscope.diffusion.respacing import respace
from ditscope.errors import BadRequest

TABLES = json.loads((Path(__file__).parents[1] / "golden" / "dit_tables.json").read_text())


@pytest.mark.parametrize("spec", list(TABLES["respacing"]))
def test_lists_equal_the_published_ones(spec: str) -> None:
    assert list(respace(spec, 1000)) == TABLES["respacing"][spec]


def test_the_accumulated_stride_is_kept() -> None:
    """Of the counts 2..1000, 278 differ from a multiplied stride; a rewrite would lose them."""
    differing = sum(
        list(respace(str(count), 1000)) != [round(i * (999 / (count - 1))) for i in range(count)]
        for count in range(2, 1001)
    )
    assert differing == 278


def test_a_constant_stride_exists_for_62_counts() -> None:
    possible = []
    for count in range(1, 1001):
        try:
            kept = respace(f"ddim{count}", 1000)
        except BadRequest:
            continue
        assert kept == tuple(range(0, 1000, kept[1])) and len(kept) == count
        possible.append(count)
    assert len(possible) == 62 and possible[:3] == [2, 3, 4] and possible[-1] == 1000


def test_an_impossible_stride_names_the_nearest_counts_and_the_way_out() -> None:
    with pytest.raises(BadRequest) as caught:
        respace("ddim70", 1000)
    message = str(caught.value)
    assert "70 steps" in message and "1000 timesteps" in message
    assert "63" in message and "72" in message and "'70'" in message


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("1", "almost free of noise"),
        ("0", "counts >= 1"),
        ("10,0,5", "counts >= 1"),
        ("1001", "at most 1000"),
        ("10,400,20", "at most 333 in each section"),
        ("ddim1001", "no constant stride"),
        ("ddim1", "no constant stride"),
        ("", "cannot read"),
        ("fifty", "cannot read"),
        ("-5", "cannot read"),
        ("10.5", "cannot read"),
        ("ddim10,20", "cannot read"),
        ("٢٥", "cannot read"),
        ("9" * 5000, "cannot read"),
    ],
)
def test_refused(spec: str, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        respace(spec, 1000)


def test_other_lengths_of_training() -> None:
    assert respace("4", 7) == (0, 2, 4, 6)
    assert respace("2,2", 7) == (0, 3, 4, 6)
    assert respace("ddim4", 7) == (0, 2, 4, 6)
