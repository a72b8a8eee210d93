"""How long a user waits before anything happens: importing the package, and `--help`."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.paired import paired


def main(pairs: int) -> None:
    """Time fresh processes; the baseline is Python that does nothing."""

    def python(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    found = paired(
        {
            "python -c pass": lambda: python("-c", "pass"),
            "python -c 'import ditscope'": lambda: python("-c", "import ditscope"),
            "ditscope --help": lambda: python("-m", "ditscope", "--help"),
        },
        pairs=max(pairs, 9),
    )
    for ratio in found:
        print(f"  {ratio.line()}")
