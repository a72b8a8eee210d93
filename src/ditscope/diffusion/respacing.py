"""Which training timesteps a shorter DDPM run keeps, exactly as the published lists.

The lists are those of Nichol and Dhariwal (arXiv:2102.09672): a run is named by a short text such
as `"250"`, `"10,15,20"` or `"ddim50"`, and weights are quoted with those names.
"""

from __future__ import annotations

import re

from ditscope.errors import BadRequest, foreign

FIELD = "steps"


def respace(spec: str, num_timesteps: int) -> tuple[int, ...]:
    """The kept timesteps, ascending.

    Args:
        spec: `"N"`: N timesteps from first to last; `"a,b,c"`: the range in three equal sections
            with a, b and c timesteps; `"ddimN"`: N timesteps at a constant integer stride from 0.
        num_timesteps: how many timesteps the process was trained with.

    Raises:
        BadRequest: for a text that is none of these, or that no such list exists for.
    """
    if not re.fullmatch(r"ddim[0-9]{1,6}|[0-9]{1,6}(,[0-9]{1,6})*", spec):
        raise BadRequest(
            f"cannot read {foreign(spec)!r}",
            field=FIELD,
            expected="a count, counts per section such as '10,15,20', or a stride such as 'ddim50'",
        )
    counts = [int(count) for count in spec.removeprefix("ddim").split(",")]
    if min(counts) < 1:
        raise BadRequest(f"found {min(counts)} in {spec!r}", field=FIELD, expected="counts >= 1")
    if spec.startswith("ddim"):
        kept = _constant_stride(counts[0], num_timesteps)
    else:
        kept = _sections(counts, num_timesteps)
    if len(kept) < 2:
        raise BadRequest(
            "one step would keep only timestep 0, which is almost free of noise",
            field=FIELD,
            expected="at least 2 steps",
        )
    return kept


def _sections(counts: list[int], num_timesteps: int) -> tuple[int, ...]:
    """`counts[i]` timesteps spread from the first to the last of the i-th of equal sections."""
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        size = num_timesteps // len(counts) + (section < num_timesteps % len(counts))
        if count > size:
            raise BadRequest(
                f"{count} steps do not fit in {size} timesteps",
                field=FIELD,
                expected=f"at most {size}" + ("" if len(counts) == 1 else " in each section"),
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        # The stride is added up, not multiplied: the published lists carry its rounding error
        # (278 of the counts 1..1000 differ otherwise, among them 21 and 31).
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += size
    return tuple(kept)


def _constant_stride(count: int, num_timesteps: int) -> tuple[int, ...]:
    """`count` timesteps 0, s, 2 s, ... with the smallest integer stride s that gives so many."""
    by_count = {
        len(range(0, num_timesteps, stride)): stride for stride in range(num_timesteps - 1, 0, -1)
    }
    if count not in by_count:
        nearest = sorted(by_count, key=lambda possible: (abs(possible - count), possible))[:4]
        raise BadRequest(
            f"no constant stride over {num_timesteps} timesteps makes {count} steps",
            field=FIELD,
            expected="a count that has one, for example " + ", ".join(map(str, sorted(nearest))),
            fix=f"or give the text '{count}' to spread {count} steps from first to last timestep",
        )
    return tuple(range(0, num_timesteps, by_count[count]))
