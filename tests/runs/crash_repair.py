"""Break a repair at every file operation, in a forked process, and look at what it left.

    python -m tests.runs.crash_repair kill damaged

One line of JSON per point: whether the run is in its old state or the new one, whether every whole
file is as it was, and whether the next repair ends where one that is not broken does.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from ditscope.errors import BadRun
from ditscope.runs.reader import open_run
from ditscope.runs.repair import repair_run
from tests.runs.crash import BREAKER, NEW, UNTOUCHED, broken_at

LATENT, ARRAY = "data.zarr/latents/c.1.0.0.0.0", "data.zarr/latents/zarr.json"
VOUCHERS = {"run.json", "COMPLETE"}


def damaged(path: Path) -> None:
    NEW.write(path)
    (path / ARRAY).unlink()
    (path / LATENT).write_bytes(b"something else")


def short(path: Path) -> None:
    NEW.write(path, steps=1)


def state(path: Path) -> str:
    """Whether the run opens as after a repair, or as before one."""
    try:
        run = open_run(path)
    except BadRun:
        return "old"
    return "new" if run.manifest.repaired and run.verify().ok else "mixed"


def content(path: Path) -> dict[str, bytes]:
    files = [each for each in path.rglob("*") if each.is_file()]
    return {str(each.relative_to(path)): each.read_bytes() for each in files}


def main(how: str, scenario: str) -> None:
    points = range(0, 6000, 300) if how == "limit" else range(1000)
    with tempfile.TemporaryDirectory() as folder:
        BREAKER.within = folder
        given, path, goal = Path(folder) / "given", Path(folder) / "run", Path(folder) / "goal"
        {"damaged": damaged, "short": short}[scenario](given)
        repair_run(shutil.copytree(given, goal))
        before, after = content(given), content(goal)
        for number in points:
            shutil.copytree(given, path)
            status = broken_at(number, how, lambda: repair_run(path))
            left = content(path)
            kept = all(left.get(name) == before[name] for name in before if name not in VOUCHERS)
            report = {"status": status, "found": state(path), "kept": kept}
            repair_run(path)
            report["repaired"] = content(path) == after
            sys.stdout.write(json.dumps(report) + "\n")
            shutil.rmtree(path)
            if status == UNTOUCHED:
                break


if __name__ == "__main__":
    main(*sys.argv[1:])
