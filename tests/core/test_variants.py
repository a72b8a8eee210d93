"""The formulas for parameters and multiply-adds against published counts, not against our model."""

import json
from pathlib import Path

import pytest

from ditscope.core.variants import VARIANTS, published_heads, variant
from ditscope.errors import BadRequest

COUNTS = json.loads((Path(__file__).parents[1] / "golden" / "dit_tables.json").read_text())[
    "params"
]

# Multiply-adds in billions at 256 and 512 px, and what the paper prints as "Gflops" at 256 px.
GIGA_MULTIPLY_ADDS = {
    "DiT-S/2": (6.056, 31.44, 6.06),
    "DiT-S/4": (1.413, 6.07, 1.41),
    "DiT-S/8": (0.358, 1.43, 0.36),
    "DiT-B/2": (23.005, 106.38, 23.01),
    "DiT-B/4": (5.565, 23.03, 5.56),
    "DiT-B/8": (1.418, 5.59, 1.42),
    "DiT-L/2": (80.698, 360.98, 80.71),
    "DiT-L/4": (19.696, 80.74, 19.70),
    "DiT-L/8": (5.011, 19.73, 5.01),
    "DiT-XL/2": (118.621, 524.54, 118.64),
    "DiT-XL/4": (29.044, 118.66, 29.05),
    "DiT-XL/8": (7.392, 29.09, 7.39),
}


def test_there_are_the_twelve_published_variants():
    assert set(VARIANTS) == set(COUNTS) == set(GIGA_MULTIPLY_ADDS)
    assert all(name == found.name for name, found in VARIANTS.items())


@pytest.mark.parametrize("found", VARIANTS.values(), ids=VARIANTS)
def test_parameter_formula_gives_the_published_counts(found):
    sizes = found.architecture()
    counts = {"total": sizes.parameters, "trainable": sizes.trainable_parameters}
    assert counts == COUNTS[found.name]


@pytest.mark.parametrize("found", VARIANTS.values(), ids=VARIANTS)
def test_multiply_adds_are_the_published_ones(found):
    small, large, printed = GIGA_MULTIPLY_ADDS[found.name]
    at_256 = found.architecture().multiply_adds / 1e9
    at_512 = found.architecture(input_size=64).multiply_adds / 1e9
    assert (round(at_256, 3), round(at_512, 2)) == (small, large)
    assert at_256 == pytest.approx(printed, abs=0.021)  # the paper rounds, and counts a little more


def test_512_pixels_only_lengthen_the_position_table():
    large = variant("DiT-XL/2").architecture(input_size=64)
    assert large.parameters == 676_014_368
    assert large.trainable_parameters == COUNTS["DiT-XL/2"]["trainable"]


def test_names_are_found_in_any_case_and_unknown_ones_refused():
    assert variant("dit-xl/2").name == "DiT-XL/2"
    with pytest.raises(BadRequest, match="did you mean DiT-XL/8"):
        variant("DiT-XL/9")


def test_heads_follow_from_width_and_depth_of_published_variants_only():
    for found in VARIANTS.values():
        assert published_heads(found.hidden_size, found.depth) == found.num_heads
    assert published_heads(1152, 27) is None


def test_published_quality_does_not_repeat_the_table_that_circulates():
    small = {size: variant(f"DiT-{size}/2").fid for size in ("S", "B", "L", "XL")}
    assert small == {"S": 68.40, "B": 43.47, "L": 23.33, "XL": 19.47}
