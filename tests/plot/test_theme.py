"""The look of figures, and how they are saved."""

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

import ditscope.plot as plot
from ditscope.errors import BadRequest, ResourceError
from ditscope.plot.marks import Scale, percent, round_values, scale_of
from ditscope.plot.sheet import wrapped
from ditscope.plot.theme import DPI, Plot, printable, save_figure
from tests.plot import drawn


def test_saved_figures_are_the_same_bytes_every_time(run, tmp_path):
    for name in ("one.png", "two.png"):
        assert save_figure(plot.heads(run), tmp_path / name) == tmp_path / name
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        width, height = plot.heads(run).get_size_inches()
        assert image.size == (round(width * DPI), round(height * DPI))
        assert set(image.info) == {"dpi"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_settings_of_the_user_change_nothing_and_are_left_alone(run):
    plain = plot.heads(run)._repr_png_()
    theirs = {
        "axes.facecolor": "black",
        "font.size": 30,
        "text.usetex": True,
        "image.origin": "lower",
    }
    with matplotlib.rc_context(theirs):
        assert plot.heads(run)._repr_png_() == plain
        assert matplotlib.rcParams["text.usetex"] is True


def test_a_notebook_shows_the_figure_itself(run):
    with Image.open(io.BytesIO(plot.overlay(run)._repr_png_())) as image:
        assert image.format == "PNG"


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_drawings_for_print_are_the_same_bytes_each_time(run, tmp_path, kind):
    for name in ("one", "two"):
        save_figure(plot.heads(run), tmp_path / f"{name}.{kind}")
    first = (tmp_path / f"one.{kind}").read_bytes()
    assert first == (tmp_path / f"two.{kind}").read_bytes()
    assert first.lstrip().startswith({"svg": b"<?xml", "pdf": b"%PDF"}[kind])


def test_dots_per_inch_can_be_chosen(run, tmp_path):
    sizes = []
    for dpi in (72, 144):
        with Image.open(save_figure(plot.heads(run), tmp_path / "figure.png", dpi)) as image:
            sizes.append(image.size[0])
    assert sizes[1] == pytest.approx(2 * sizes[0], abs=2)


@pytest.mark.parametrize("name", ["figure.jpg", "figure", "figure.PNG.txt"])
def test_other_formats_are_refused(tmp_path, name):
    with pytest.raises(BadRequest, match=r"expected a name ending in \.png, \.svg or \.pdf"):
        save_figure(Plot(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_a_resource_error(tmp_path):
    with pytest.raises(ResourceError, match="cannot be written"):
        save_figure(Plot(), tmp_path / "none" / "figure.png")


def test_an_old_figure_stays_if_the_new_one_cannot_be_drawn(tmp_path):
    target = tmp_path / "figure.png"
    target.write_bytes(b"old")
    broken = Plot(figsize=(1, 1))
    broken.text(0, 0, r"$\frac$", parse_math=True)
    with pytest.raises(ValueError, match="frac"):
        save_figure(broken, target)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("dog face", "dog face"),
        ("naïve ≈ $x$", "naïve ≈ $x$"),
        ("\U0001f436", "\\u1f436"),
        ("a\u202eb\nc", "a\\u202eb\\u000ac"),
    ],
)
def test_what_cannot_be_drawn_is_shown_by_its_code_point(text, shown):
    assert printable(text) == shown


def test_hostile_class_names_are_drawn_as_text(run):
    labels = ["$\\frac{", "<script>alert(1)</script>", "\U0001f436\u202e" * 40, "x" * 5000]
    figure = plot.image_grid([run.images.values[0]] * 4, labels)
    assert drawn.collisions(figure) == []
    assert "$\\frac{" in drawn.words(figure)


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0, "0 %"),
        (1 / 256, "0.39 %"),
        (0.021, "2.1 %"),
        (0.08, "8 %"),
        (0.3141, "31 %"),
        (1, "100 %"),
    ],
)
def test_shares_are_written_in_percent(share, words):
    assert percent(share) == words


@pytest.mark.parametrize("high", [1e-6, 0.004, 0.037, 0.5, 1.0])
def test_ticks_are_round_and_on_the_bar(high):
    values = round_values(Scale(high))
    assert len(values) == 3
    for value in values:
        assert 0 < value <= high * 0.75**2
        digits = f"{value:.6e}".split("e")[0].rstrip("0")
        assert digits in {"1.", "2.", "3.", "4.", "5."}


def test_the_scale_holds_all_numbers_that_are_known():
    assert scale_of(np.array([0.1, np.nan, 0.4])) == Scale(0.4)
    assert scale_of(np.array([np.nan])) == Scale(1.0)
    assert scale_of(np.zeros(3)) == Scale(1.0, constant=0.0)
    assert scale_of(np.full(3, 0.01)) == Scale(0.04, constant=0.01)


def test_words_wrap_within_their_room():
    lines = wrapped("many words that do not fit in one line of two inches", 10, 2.0)
    assert len(lines) > 1
    assert " ".join(lines) == "many words that do not fit in one line of two inches"
    (cut,) = wrapped("x" * 500, 10, 2.0)
    assert cut.endswith("x…")
    assert wrapped("", 10, 2.0) == []
