"""What a head puts out: the only metric that knows of values.

Shapes: B rows, H heads, N queries, V width of values.
"""

from __future__ import annotations

from torch import Tensor

from ditscope.attention.metrics.registry import OUTPUT, reduces


@reduces("output_norm", OUTPUT)
def output_norm(output: Tensor) -> Tensor:
    """Root mean square over queries of the length of the output."""
    return output.float().square().sum(-1).mean(-1).sqrt()
