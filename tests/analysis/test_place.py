"""Coordinates: what is checked, and what is chosen when it is left open."""

import numpy as np
import pytest

from ditscope.analysis.place import Place, checked_layer, default_step, even_rms_distance, locate
from ditscope.core.sites import TokenGrid
from ditscope.errors import BadRequest
from tests.analysis.recorded import LIKE, record


def test_what_is_given_is_kept(run):
    place = locate(run, layer=2, head=1, step=3, query=(5, 7), sample=1, branch="uncond")
    assert place == Place(2, 1, 3, (5, 7), 1, "uncond")
    assert place.call() == (
        'run.attention(layer=2, head=1, step=3, query=(5, 7), sample=1, branch="uncond")'
    )


def test_the_call_in_words_returns_the_numbers(run):
    place = locate(run, layer=np.int64(1), head="mean", step=np.int32(2), query=[0, 3])
    found = eval(place.call(), {"run": run})
    np.testing.assert_array_equal(found, run.attention(1, "mean", 2, (0, 3)))


def test_what_is_left_open_is_chosen_and_said(run):
    place = locate(run)
    assert (place.head, place.step, place.query) == (LIKE, 2, (3, 4))
    assert [reason.split()[0] for reason in place.reasons] == ["Head", "Patch"]
    assert locate(run) == place


def test_the_chosen_head_looks_far_at_no_fixed_patch_and_at_a_part_of_the_picture(run):
    stats = run.stats.sel(step=3, sample=0, branch="cond")
    entropy, distance, received = (
        stats[name].values.ravel() for name in ("entropy", "rms_distance", "received_max")
    )
    even = even_rms_distance(TokenGrid(height=6, width=8))
    fit = [i for i in range(9) if distance[i] >= even / 2 and received[i] <= 10 / 48]
    assert 0 < len(fit) < 9
    place = locate(run, step=3)
    apart = np.abs(entropy / np.log(48) - 2 / 3)
    assert divmod(min(fit, key=lambda i: apart[i]), 3) == (place.layer, place.head)
    assert int(entropy.argmin()) not in fit  # the most focused head of all looks near


def test_if_no_head_looks_far_one_is_chosen_all_the_same(tmp_path):
    run = record(tmp_path / "run", layers=2, heads=1, steps=2)  # head 0 looks at its neighbours
    place = locate(run)
    assert (place.layer, place.head) == (1, 0)


@pytest.mark.parametrize("grid", [(1, 1), (2, 8), (16, 16)])
def test_distance_of_even_attention(grid):
    places = np.stack([axis.ravel() for axis in np.mgrid[: grid[0], : grid[1]]], -1)
    squares = ((places[:, None] - places) ** 2).sum(-1)
    found = even_rms_distance(TokenGrid(height=grid[0], width=grid[1]))
    assert found == pytest.approx(np.sqrt(squares.mean(-1)).mean())


def test_a_given_layer_is_kept_when_the_head_is_chosen(run):
    assert [locate(run, layer=layer).layer for layer in range(3)] == [0, 1, 2]


def test_a_given_head_without_a_layer_is_taken_from_the_middle_layer(run):
    assert (locate(run, head=2).layer, locate(run, head="mean").layer) == (1, 1)


def test_the_default_step_needs_no_model_if_any_step_does_not(tmp_path):
    stored = record(tmp_path / "stored", layers=1, steps=6, qk_steps=(0, 3))
    assert default_step(stored) == 3
    bare = record(tmp_path / "bare", layers=1, steps=6, qk_steps=())
    assert default_step(bare) == 4


def test_the_default_step_is_one_that_evaluated_the_branch(tmp_path):
    run = record(tmp_path / "run", layers=1, steps=3, qk_steps=(0,))  # no uncond at step 0
    assert default_step(run, "cond") == 0
    assert locate(run, head="mean", branch="uncond").step == 2


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"layer": 3}, "layer: 3 is not in this run; expected an integer from 0 to 2"),
        ({"layer": -1}, "layer: -1 is not in this run; expected an integer from 0 to 2"),
        ({"layer": 1.0}, "layer: 1.0 is not"),
        ({"layer": True}, "layer: True is not"),
        ({"layer": "blocks.0.attn"}, "layer: 'blocks.0.attn' is not"),
        ({"head": 3}, "head: 3 is not in this run; expected an integer from 0 to 2"),
        ({"head": "max"}, "head: 'max' is not a head; expected an integer from 0 to 2, or 'mean'"),
        ({"step": 4}, "step: 4 is not in this run; expected an integer from 0 to 3"),
        ({"sample": 2}, "sample: 2 is not in this run; expected an integer from 0 to 1"),
        ({"query": (6, 0)}, "row 0 to 5, column 0 to 7"),
        ({"query": (0, -1)}, "row 0 to 5, column 0 to 7"),
        ({"query": 17}, "query: 17 is not a patch of layer"),
        ({"query": (1, 2, 3)}, "query: (1, 2, 3) is not a patch"),
        ({"query": ("a", "b")}, "query: ('a', 'b') is not a patch"),
        ({"branch": "both"}, "branch: 'both' was not evaluated"),
        ({"branch": "uncond", "step": 0}, "branch: 'uncond' was not evaluated at step 0"),
    ],
)
def test_coordinates_outside_the_run_are_refused_with_the_range(run, where, words):
    with pytest.raises(BadRequest) as caught:
        locate(run, **where)
    assert words in str(caught.value)


def test_foreign_text_in_a_request_is_cut_and_escaped(run):
    with pytest.raises(BadRequest) as caught:
        locate(run, head="\x1b[2J" + "x" * 10_000)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_steps_that_a_partial_run_lacks_are_refused(tmp_path):
    run = record(tmp_path / "run", layers=1, whole=2)
    assert locate(run).step == 1
    with pytest.raises(BadRequest, match="partial run; expected an integer from 0 to 1"):
        locate(run, step=2)


def test_a_head_cannot_be_chosen_without_statistics(tmp_path):
    run = record(tmp_path / "run", layers=1, kept=False)
    with pytest.raises(BadRequest, match="recorded no entropy, rms_distance, received_max"):
        locate(run)
    assert locate(run, head="mean").head == "mean"


def test_layers_without_patches_are_refused_and_never_chosen(run):
    class Mixed:
        def __init__(self, keep):
            sites = tuple(
                site if site.index in keep else site.model_copy(update={"grid": None})
                for site in run.manifest.sites
            )
            self.manifest = run.manifest.model_copy(update={"sites": sites})

        def __getattr__(self, name):
            return getattr(run, name)

    assert locate(Mixed({0}), head="mean").layer == 0
    assert locate(Mixed({0})).layer == 0
    with pytest.raises(BadRequest, match=r"layer 1 .*not on a known patch grid; expected one of 0"):
        checked_layer(Mixed({0}), 1)
    with pytest.raises(BadRequest, match="no layer of this run"):
        locate(Mixed(set()))
