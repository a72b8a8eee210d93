"""All benchmarks of speed, or those named: `scripts/bench [NAME ...] [--pairs N]`.

`scripts/bench faults [options]` measures something else: whether planted faults are found.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable

import torch

from benchmarks import (
    analyses,
    capture,
    faults,
    forward,
    reading,
    recording,
    startup,
    training,
)

BENCHMARKS: dict[str, Callable[[argparse.Namespace], None]] = {
    "startup": lambda arguments: startup.main(arguments.pairs),
    "forward": lambda arguments: forward.main(arguments.pairs),
    "recording": lambda arguments: recording.main(arguments.pairs),
    "reading": lambda arguments: reading.main(arguments.pairs),
    "training": lambda arguments: training.main(arguments.pairs),
    "capture": capture.main,
    "analyses": lambda arguments: analyses.main(),
}


def main() -> None:
    """Run and print; every ratio is of times taken in turn in one process."""
    if sys.argv[1:2] == ["faults"]:
        faults.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], metavar="name")
    parser.add_argument("--pairs", type=int, default=5)
    capture.add_options(parser)
    arguments = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    for name in arguments.names or BENCHMARKS:
        print(f"\n{name}")
        BENCHMARKS[name](arguments)


if __name__ == "__main__":
    main()
