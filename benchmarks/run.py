"""All benchmarks, or those named: `scripts/bench [NAME ...] [--pairs N]`."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable

import torch

from benchmarks import forward, recording, startup, training

BENCHMARKS: dict[str, Callable[[int], None]] = {
    "startup": startup.main,
    "forward": forward.main,
    "recording": recording.main,
    "training": training.main,
}


def main() -> None:
    """Run and print; every ratio is of times taken in turn in one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], metavar="name")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    for name in arguments.names or BENCHMARKS:
        print(f"\n{name}")
        BENCHMARKS[name](arguments.pairs)


if __name__ == "__main__":
    main()
