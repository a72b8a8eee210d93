"""The card of a finding shows its numbers, its threshold and the advice."""

import numpy as np
import pytest

import ditscope as ds
from tests.analysis.constructed import with_statistics
from tests.analysis.test_diagnose import FAULTS, healthy
from tests.plot import drawn


def card(path, name):
    values = healthy()
    FAULTS[name][0](values)
    run = with_statistics(path, values)
    (found,) = ds.diagnose(run).findings
    return run, found, ds.plot.finding(run, found)


@pytest.mark.parametrize("name", FAULTS)
def test_it_says_what_is_wrong_and_what_to_do(tmp_path, name):
    _, found, figure = card(tmp_path / "run", name)
    words = " ".join(drawn.words(figure).split())
    for part in (found.rule, found.place(), found.advice, found.threshold.words()):
        assert " ".join(part.split()) in words
    assert found.severity.capitalize() in words
    assert " ".join(found.message.split())[1:] in words
    assert "ditscope sample --model toy" in words


def test_the_curve_is_what_was_measured(tmp_path):
    _, found, figure = card(tmp_path / "run", "diffuse")
    curve, threshold = figure.axes[1].lines[:2]
    np.testing.assert_allclose(curve.get_ydata(), found.curve.values)
    assert set(threshold.get_ydata()) == {found.threshold.value}
    (shaded,) = figure.axes[1].patches
    assert (shaded.get_x(), shaded.get_x() + shaded.get_width()) == (3.5, 11.5)


def test_a_finding_without_a_curve_is_a_bar(tmp_path):
    _, found, figure = card(tmp_path / "run", "redundant-heads")
    assert found.curve is None
    (bar,) = figure.axes[1].patches
    assert bar.get_width() == pytest.approx(found.measured)


def test_a_title_takes_the_place_of_the_message(tmp_path):
    run, found, _ = card(tmp_path / "run", "sinks")
    assert "My card" in drawn.words(ds.plot.finding(run, found, title="My card"))
