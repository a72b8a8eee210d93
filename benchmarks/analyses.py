"""What all analyses of a run cost: 50 steps of 8 pictures with guidance, and a run of 10 steps.

Each analysis is timed once in a fresh process that reads the run from disk; the memory is the peak
of that process. It must not grow with the number of steps.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import ditscope as ds
from benchmarks.findings import draw

STEPS = (10, 50)
SECONDS, BYTES = 20, 10**9
"""What all analyses together may take."""


def main() -> None:
    """Print seconds and peak memory of all analyses."""
    for steps in STEPS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run"
            draw(path, steps=steps)
            code = f"from benchmarks.analyses import measured; measured({str(path)!r})"
            print(f"  {steps} steps of 8 pictures with guidance")
            subprocess.run([sys.executable, "-c", code], check=True)


def measured(path: str) -> None:
    """Run every analysis once, and print what each took and the peak memory."""
    import time

    from ditscope.analysis import claims, compare, head_kinds, layers, map_measures, phases, steps
    from ditscope.analysis import map_difference as maps
    from ditscope.analysis.mass_flow import mass_flow
    from ditscope.analysis.parts import find_parts
    from ditscope.analysis.received import received_maps
    from ditscope.analysis.rollout import rollout
    from ditscope.analysis.symmetry import symmetry

    run = ds.open_run(path)
    samples = range(len(run.manifest.labels))
    analyses = {
        "curves, layers, phases": lambda: (
            steps.step_curves(run),
            layers.layer_profile(run),
            phases.phases(run),
        ),
        "measures of maps": lambda: map_measures.map_measures(run),
        "kinds of heads": lambda: head_kinds.head_kinds(run),
        "claims": lambda: claims.usual_claims(run),
        "comparison": lambda: compare.compare(run, run, class_a=run.manifest.labels[0].name),
        "difference of maps": lambda: maps.map_difference(run, run),
        "parts of every picture": lambda: [find_parts(run, sample) for sample in samples],
        "received attention": lambda: received_maps(run),
        "symmetry": lambda: symmetry(run),
        "flow": lambda: mass_flow(run, {"middle": (4, 4, 12, 12)}),
        "rollout of every picture": lambda: [rollout(run, sample=sample) for sample in samples],
        "diagnosis": lambda: ds.diagnose(run),
    }
    total = processor = 0.0
    for name, analyse in analyses.items():
        started = time.perf_counter(), time.process_time()
        analyse()
        took = time.perf_counter() - started[0], time.process_time() - started[1]
        total, processor = total + took[0], processor + took[1]
        print(f"    {name:<28} {took[0]:7.2f} s   processor {took[1]:7.2f} s")
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(next(x for x in status.splitlines() if x.startswith("VmHWM:")).split()[1]) * 1024
    met = "met" if total <= SECONDS and peak <= BYTES else "not met"
    print(
        f"    {'all':<28} {total:7.2f} s   processor {processor:7.2f} s   peak {peak / 2**20:.0f} "
        f"MiB   (at most {SECONDS} s, {BYTES / 2**20:.0f} MiB: {met})"
    )
