"""How many attention heads: more for more data."""

from __future__ import annotations

from ditscope.errors import BadConfig

SIZES = (
    ("small", 10_000, range(4, 9)),
    ("medium", 1_000_000, range(8, 13)),
    ("large", None, range(12, 17)),
)
"""Name of a size of data set, below how many pictures, and the numbers of heads for it."""

BEST_WIDTH = 64
"""Width of a head that attention kernels are made for, and that most published models have."""


def choose_heads(hidden_size: int, pictures: int) -> tuple[int, str]:
    """A number of heads for a data set of so many different pictures, and why, in one sentence.

    Of the numbers that its size allows and that divide the width, the one whose head width is
    nearest to 64. Raises BadConfig if none divides it.
    """
    name, _, allowed = next(size for size in SIZES if size[1] is None or pictures < size[1])
    fitting = [heads for heads in allowed if hidden_size % heads == 0]
    if not fitting:
        raise BadConfig(
            f"no number from {allowed[0]} to {allowed[-1]} divides hidden_size {hidden_size}",
            field="heads",
            fix="give --heads a number that does, or change model.hidden_size",
        )
    heads = min(fitting, key=lambda each: (abs(hidden_size / each - BEST_WIDTH), each))
    why = (
        f"{heads} heads of {hidden_size // heads}: {pictures:,} different pictures are a {name} "
        f"data set ({allowed[0]} to {allowed[-1]} heads), {hidden_size} is divided by "
        f"{', '.join(map(str, fitting))} of these, and {heads} comes nearest to a width of "
        f"{BEST_WIDTH}"
    )
    return heads, why
