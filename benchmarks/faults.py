"""Whether `ditscope diagnose` finds what is wrong: known faults planted in the bundled model.

`scripts/bench faults [--cases 20] [--seed 0] [--early FOLDER] [--middle FOLDER] [--keep FOLDER]`
draws that many cases of every fault, each with another class, noise, number of steps, guidance,
place and strength, and as many healthy runs. A case is found if a rule that names the fault finds
it, and located if the first such finding names the right layer, heads and steps.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.planted import Fault, Planted, faults
from ditscope.analysis.diagnose.calibration import Calibration, read_calibration
from ditscope.analysis.diagnose.engine import Diagnosis, diagnose
from ditscope.analysis.diagnose.finding import Finding
from ditscope.core.statistics import DEFAULT_METRICS
from ditscope.pipeline import Pipeline, load
from ditscope.runs.layout import COMPLETE
from ditscope.runs.reader import Run, open_run
from ditscope.sampling.draw import record_job
from ditscope.sampling.job import Job, make_job
from ditscope.sampling.recorder import manifest_of

STEPS, SCALES = (10, 14), (2.5, 5.5)
QK_STEPS = 5
OVERLAP = 0.5
"""Of the steps named and the steps planted, what must be both: intersection over union."""


@dataclass(frozen=True)
class Outcome:
    """What became of one case."""

    found: bool
    located: bool
    words: str


def main(arguments: Sequence[str]) -> None:
    """Plant, draw, diagnose, count."""
    options = _options(arguments)
    pipe = load("emoji")
    calibration = None if options.calibration is None else read_calibration(options.calibration)
    given = {"early": options.early, "middle": options.middle}
    kinds = faults({name: path for name, path in given.items() if path is not None})
    chosen = [kind for kind in kinds if not options.only or options.only in kind.name]
    print(f"  {options.cases} cases of each of {len(chosen)} faults, seed {options.seed}")
    totals, alarms = Counter(), Counter()
    with _folder(options.keep) as folder:
        for number, kind in enumerate(kinds):
            if kind not in chosen:
                continue
            outcomes = []
            for case in range(options.cases):
                random = np.random.default_rng([options.seed, number, case])
                place = folder / f"{kind.name.replace(' ', '-')}-{options.seed}-{case:03d}"
                outcomes.append(_faulty(pipe, kind, random, place, calibration))
                if options.verbose or not outcomes[-1].located:
                    print(f"    {kind.name} {case}: {outcomes[-1].words}", flush=True)
            totals += Counter(
                cases=len(outcomes),
                found=sum(each.found for each in outcomes),
                located=sum(each.located for each in outcomes),
            )
            print(f"  {kind.name:22} {_counted(outcomes)}", flush=True)
        count = options.healthy if options.healthy is not None else options.cases * len(chosen)
        for case in range(count):
            random = np.random.default_rng([options.seed, 1000, case])
            place = folder / f"healthy-{options.seed}-{case:03d}"
            rules = _healthy(pipe, random, place, calibration)
            alarms.update({"error": any(rules.values()), "any": bool(rules), **rules})
    print(f"  all: found {totals['found']} of {totals['cases']}, located {totals['located']}")
    print(
        f"  healthy: {alarms['error']} of {count} with an error, {alarms['any']} with any finding"
    )
    by_rule = {name: n for name, n in alarms.items() if name not in ("error", "any") and n}
    print(f"  errors of healthy runs by rule: {by_rule or 'none'}")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench faults", description=__doc__)
    parser.add_argument("--cases", type=int, default=20, help="of every fault")
    parser.add_argument("--healthy", type=int, help="healthy runs [default: as many as faults]")
    parser.add_argument("--seed", type=int, default=0, help="another seed plants other faults")
    parser.add_argument("--early", type=Path, help="weights of an early checkpoint")
    parser.add_argument("--middle", type=Path, help="weights of a checkpoint half way")
    parser.add_argument("--only", help="faults with this in their name")
    parser.add_argument("--calibration", type=Path, help="[default: the one beside the model]")
    parser.add_argument("--keep", type=Path, help="keep the runs here, and judge those that are")
    parser.add_argument("--verbose", action="store_true", help="say what became of every case")
    return parser.parse_args(list(arguments))


def _faulty(
    pipe: Pipeline,
    kind: Fault,
    random: np.random.Generator,
    place: Path,
    calibration: Calibration | None,
) -> Outcome:
    job = _job(pipe, random)
    planted = kind.draw(random, job)
    found = _diagnosed(job, planted, place, calibration)
    named = [finding for finding in found.findings if finding.rule in kind.rules]
    located = bool(named) and is_located(named[0], planted)
    where = "; ".join(f"{each.rule} ({each.place()})" for each in found.findings) or "nothing"
    truth = f"{planted.words}, layers {planted.layers}, heads {planted.heads}, {planted.steps}"
    return Outcome(bool(named), located, f"planted {truth}; found {where}")


def _healthy(
    pipe: Pipeline, random: np.random.Generator, place: Path, calibration: Calibration | None
) -> dict[str, int]:
    """Rules with findings; 1 for those with an error, 0 for those with a warning."""
    found = _diagnosed(_job(pipe, random), None, place, calibration)
    rules = {each.rule: int(each.severity == "error") for each in reversed(found.findings)}
    if any(rules.values()):
        print(f"    {place.name}: {[(each.rule, each.place()) for each in found.findings]}")
    return rules


def _job(pipe: Pipeline, random: np.random.Generator) -> Job:
    """One picture, recorded as `--attention-debug --metrics output_norm --qk-steps 5` does."""
    job = make_job(
        pipe,
        [int(random.integers(len(pipe.labels)))],
        {
            "steps": int(random.integers(STEPS[0], STEPS[1] + 1)),
            "cfg_scale": float(random.uniform(*SCALES)),
            "seed": int(random.integers(2**31)),
            "metrics": (*DEFAULT_METRICS, "output_norm"),
        },
    )
    return job.keeping_qk(QK_STEPS)


def _diagnosed(
    job: Job, planted: Planted | None, place: Path, calibration: Calibration | None
) -> Diagnosis:
    """Draw the run, unless it is there from before, and diagnose it; the run goes again."""
    return diagnose(_drawn(job, planted, place), calibration=calibration)


def _drawn(job: Job, planted: Planted | None, place: Path) -> Run:
    if (place / COMPLETE).exists():
        return open_run(place)
    manifest = manifest_of(job)  # of the healthy network
    times = [each.timestep for each in job.plan.evaluations]
    fault = planted.plant(job.pipe.model, times) if planted else contextlib.nullcontext()
    _ = job.sites  # the census is taken before
    with fault:
        return record_job(job, place, manifest=manifest, overwrite=True)


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def is_located(finding: Finding, planted: Planted) -> bool:
    """Whether a finding names the place of the fault: one of its layers, its heads, its steps."""
    if planted.whole:
        return finding.layer is None
    layer = planted.layers is None or finding.layer in planted.layers
    heads = planted.heads is None or finding.heads == planted.heads
    return layer and heads and _same_steps(finding, planted.steps)


def _same_steps(finding: Finding, planted: tuple[int, int] | None) -> bool:
    """Steps overlap by half; of stored maps alone, all named steps are among those planted."""
    if planted is None or finding.steps is None:
        return True
    (first, last), (begun, ended) = finding.steps, planted
    if finding.rule in ("background", "lost-object"):
        return begun <= first and last <= ended
    both = min(last, ended) - max(first, begun) + 1
    return both / (max(last, ended) - min(first, begun) + 1) >= OVERLAP


def _counted(outcomes: list[Outcome]) -> str:
    count = len(outcomes)
    found, located = sum(each.found for each in outcomes), sum(each.located for each in outcomes)
    shares = f"({found / count:4.0%}), located {located:3d} ({located / count:4.0%})"
    return f"found {found:3d} of {count} {shares}"
