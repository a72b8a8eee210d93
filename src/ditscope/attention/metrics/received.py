"""What keys receive: the mean of the map over its queries.

Shapes: T rows times heads, M keys.
"""

from __future__ import annotations

from torch import Tensor

from ditscope.attention.metrics.registry import RECEIVED, reduces
from ditscope.attention.metrics.scope import Scope


def _largest(share: Tensor, scope: Scope) -> Tensor:
    return share.amax(-1)


@reduces("received_max", RECEIVED, finish=_largest)
def received_max(share: Tensor, scope: Scope) -> Tensor:
    """The share of each key; the largest is taken last."""
    return share
