"""The proof that a run carries with it: attention rebuilt from what is kept, against the kernel.

For a few random queries i of an attention call, with Q, K and log-sum-exp as they are stored:

    row sum    | sum_j p_ij - 1 |                                 p_ij = exp(scale q_i k_j - lse_i)
    output     | sum_j p_ij (v_j r) - o_i r | / max_j | v_j r |

`o` is what the model's own kernel returned, `v` the values it was given, and r a fixed random
direction of signs over sqrt(K), so that a difference of `o` in any channel shows, and only one
number a token is stored in place of `v` (Freivalds 1977: a product is checked by one projection).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditscope.core.sites import Site

ROW_SUM, OUTPUT = "row_sum", "output"
ERRORS = {
    ROW_SUM: "how far a rebuilt attention row is from summing to one, largest of some queries",
    OUTPUT: "rebuilt P V against the output of the kernel, of the largest value, largest of some "
    "queries",
}
PROVEN_QUERIES = 4

ROW_SUM_TOLERANCE = 1e-3
OUTPUT_TOLERANCE = {"float32": 2e-3, "float16": 4e-3, "bfloat16": 3e-2}
"""By number type: four times the rounding of the output and of P inside a kernel; TF32 products."""

REPEATED_WITHIN = 1e-5
"""How far the same error computed elsewhere may be from the stored one: the order of its sums."""


@dataclass(frozen=True)
class Witness:
    """What a kernel said beside Q, K and log-sum-exp, along one direction r of the head width."""

    values: NDArray[np.float32]  # (..., head, key): v_j r
    outputs: NDArray[np.float32]  # (..., head, proven query): o_i r


def proven_queries(seed: int, step: int, sites: Sequence[Site]) -> tuple[int, ...]:
    """The queries whose attention is rebuilt at `step`: random, and the same ones every time."""
    count = min(site.queries for site in sites)
    random = np.random.default_rng([seed, step])
    chosen = random.choice(count, min(count, PROVEN_QUERIES), replace=False)
    return tuple(sorted(chosen.tolist()))


def errors(
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    lse: NDArray[np.float32],
    witness: Witness,
    scale: float,
) -> dict[str, NDArray[np.float32]]:
    """Both errors of every head, by name (..., head).

    Args:
        q: (..., head, proven query, head_width).
        k: (..., head, key, head_width).
        lse: (..., head, proven query), natural log.
        witness: of the same call.
        scale: softmax scale.
    """
    with np.errstate(all="ignore"):  # damaged numbers show in the errors
        p = np.exp(scale * (q @ k.swapaxes(-1, -2)) - lse[..., None])
        found = (p @ witness.values[..., None])[..., 0]
        largest = np.abs(witness.values).max(-1)
        apart = np.abs(found - witness.outputs).max(-1)
        return {
            ROW_SUM: np.abs(p.sum(-1, dtype=np.float64) - 1).max(-1).astype(np.float32),
            OUTPUT: np.where(apart == 0, 0, apart / largest).astype(np.float32),
        }


def broken(name: str, found: NDArray[Any], numbers: str) -> bool:
    """Whether an error of this name, of attention in this number type, is beyond rounding."""
    limit = ROW_SUM_TOLERANCE if name == ROW_SUM else OUTPUT_TOLERANCE[numbers]
    return not bool((found <= limit).all())
