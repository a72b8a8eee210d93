"""The metrics of attention, each a small function and a registration.

Importing this package registers all that are described in `ditscope.core.statistics`.
"""

from ditscope.attention.metrics import (  # noqa: F401
    distance,
    likeness,
    output,
    received,
    segments,
    spread,
)
