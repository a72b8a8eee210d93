"""A class is found by name or index; a wrong one is answered with the nearest names."""

import sys
from subprocess import run

import pytest

from ditscope.core.labels import find_class
from ditscope.data.scenes import EmojiScenes
from ditscope.errors import BadRequest

NAMES = EmojiScenes.class_names


@pytest.mark.parametrize(
    ("wanted", "index"),
    [("dog face", 0), ("Dog  Face ", 0), ("DOUGHNUT", 39), ("7", 7), (71, 71), (" 0 ", 0)],
)
def test_name_or_index_is_found(wanted, index):
    assert find_class(wanted, NAMES) == index


def test_every_name_finds_its_own_index():
    assert [find_class(name, NAMES) for name in NAMES] == list(range(len(NAMES)))


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [("dog", "dog face"), ("pengiun", "penguin"), ("appel", "red apple"), ("cat", "cat face")],
)
def test_unknown_name_lists_the_nearest(wanted, nearest):
    with pytest.raises(BadRequest, match=f"there is no class '{wanted}'") as caught:
        find_class(wanted, NAMES)
    assert caught.value.fix is not None
    assert caught.value.fix.startswith(f"Nearest names: {nearest}")
    assert "0 to 71" in str(caught.value)


@pytest.mark.parametrize("wanted", [72, -1, "72", "-1"])
def test_index_out_of_range_says_the_range(wanted):
    with pytest.raises(BadRequest, match=f"no class {wanted}; expected an index from 0 to 71"):
        find_class(wanted, NAMES)


@pytest.mark.parametrize("wanted", ["", "9" * 5000, "\x1b[31mred", 2.5, None, "1.0", True, False])
def test_nonsense_is_a_bad_request(wanted):
    with pytest.raises(BadRequest) as caught:
        find_class(wanted, NAMES)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_shared_name_asks_for_the_index():
    names = ("crane", "dog", "crane", "Dog", "3")
    with pytest.raises(
        BadRequest, match="2 classes are called 'crane'; expected one of the indices 0, 2"
    ):
        find_class("crane", names)
    assert find_class("dog", names) == 1
    assert find_class("Dog", names) == 3
    assert find_class("3", names) == 4


def test_numpy_is_not_needed():
    code = "import sys, ditscope.core.labels; assert not {'numpy', 'torch'} & set(sys.modules)"
    run([sys.executable, "-c", code], check=True)
