"""Which stored maps an analysis reads: in blocks, and what is refused."""

import numpy as np
import pytest

from ditscope.analysis import stored_maps as module
from ditscope.analysis.stored_maps import stored_maps
from ditscope.errors import BadRequest
from tests.analysis import heads
from tests.analysis.constructed import with_maps

GRID = (4, 5)


def run_of(folder, **options):
    def weights(step, branch, sample, layer):
        return np.stack([heads.local(GRID, 0.5 + step + layer), heads.far(GRID, seed=sample)])

    return with_maps(folder, weights, grid=GRID, steps=3, samples=2, layers=2, **options)


def test_rows_in_blocks_are_those_of_the_maps(tmp_path, monkeypatch):
    maps = stored_maps(run_of(tmp_path / "run", qk_steps=(0, 2)))
    assert (maps.steps, maps.layers, maps.shape) == ((0, 2), (0, 1), (2, 2, 2, 2))
    places = list(maps.places())
    assert len(places) == 8 and places[-1] == ((1, 1, 1), 1, 2, 1)
    monkeypatch.setattr(module, "MAX_NUMBERS", 7 * 2 * 20)
    blocks = list(maps.rows(1, 2, 1))
    assert [len(queries) for queries, _ in blocks] == [7, 7, 6]
    whole = np.concatenate([rows for _, rows in blocks], axis=1)
    np.testing.assert_allclose(whole[0], heads.local(GRID, 3.5), atol=1e-6)
    ((chosen, rows),) = maps.rows(1, 2, 1, np.array([19, 3]))
    assert chosen.tolist() == [19, 3]
    np.testing.assert_array_equal(rows, whole[:, [19, 3]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": [1]}, "steps: no Q and K are stored of step 1; expected some of 0, 2"),
        ({"steps": []}, "steps: no step is named"),
        ({"steps": [9]}, "step: 9 is not in this run"),
        ({"layers": [2]}, "layer: 2 is not in this run"),
        ({"branch": "both"}, "branch: 'both' is not in this run"),
    ],
)
def test_what_is_not_stored_is_named(tmp_path, options, words):
    run = run_of(tmp_path / "run", qk_steps=(0, 2))
    with pytest.raises(BadRequest) as caught:
        stored_maps(run, **options)
    assert words in str(caught.value)


def test_a_run_without_maps_says_what_to_record(tmp_path):
    with pytest.raises(BadRequest, match="--qk-steps"):
        stored_maps(run_of(tmp_path / "run", qk_steps=()))
