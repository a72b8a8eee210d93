"""Whatever ends a writer, at whatever moment: a whole prefix, the old run, or nothing is left."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
KILLED, RESOURCE, FINISHED, UNTOUCHED = -9, 4, 0, 98


def reports(*arguments):
    """What `tests.runs.crash` found at each point of breaking."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.runs.crash", *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found and all(report["repaired"] for report in found)
    return found


@pytest.mark.parametrize(("how", "every"), [("kill", 3), ("fail", 7)])
def test_breaking_any_file_operation_leaves_whole_steps(how, every):
    found = reports(how, "new", every)
    last = found.pop()
    assert last == {"status": UNTOUCHED, "found": "new complete", "repaired": True}
    assert len(found) > 100 // every
    ends = {KILLED} if how == "kill" else {RESOURCE, FINISHED}  # finished: it did not matter
    assert {report["status"] for report in found} <= ends
    assert {report["found"] for report in found} == {"nothing", "new 1", "new 2", "new complete"}
    order = [report["found"] for report in found if report["status"] != FINISHED]
    assert order == sorted(order, key=["nothing", "new 1", "new 2", "new complete"].index)


@pytest.mark.parametrize(("how", "every"), [("kill", 13), ("fail", 13)])
def test_breaking_any_file_operation_leaves_the_old_run_or_the_new(how, every):
    found = reports(how, "over", every)
    last = found.pop()
    assert last == {"status": UNTOUCHED, "found": "new complete", "repaired": True}
    ends = {KILLED} if how == "kill" else {RESOURCE, FINISHED}
    assert {report["status"] for report in found} <= ends
    assert {report["found"] for report in found} == {"old complete", "new complete"}


@pytest.mark.parametrize("scenario", ["new", "over"])
def test_killing_at_random_moments(scenario):
    found = reports("clock", scenario, 1)
    whole = {"nothing", "new 1", "new 2"} if scenario == "new" else {"old complete"}
    assert len(found) == 8
    assert {report["found"] for report in found} <= {*whole, "new complete"}
    assert {report["status"] for report in found} <= {KILLED, UNTOUCHED}


def test_a_full_disk_keeps_the_whole_steps():
    """A limit on the size of files stands in for a full disk: the same error, at a chosen byte."""
    found = reports("limit", "new", 1)
    counted = Counter((report["status"], report["found"]) for report in found)
    assert counted.keys() <= {
        (RESOURCE, "nothing"),
        (RESOURCE, "new 1"),
        (RESOURCE, "new 2"),
        (UNTOUCHED, "new complete"),
    }
    assert counted[RESOURCE, "nothing"] and counted[UNTOUCHED, "new complete"]
    assert counted[RESOURCE, "new 1"] + counted[RESOURCE, "new 2"]
