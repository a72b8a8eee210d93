"""One run drawn by several processes: the same run, bit for bit, that one process would draw.

    record_together(job, "runs/dogs", group)      # on every rank

Batches are fixed by the job, whoever draws them; a rank takes whole ones. Each becomes a run of its
own (`Parts`), and rank 0 merges them when all are there.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from ditscope.distributed.group import Group
from ditscope.distributed.parts import Parts, sample_text
from ditscope.runs.merge import merge
from ditscope.runs.target import check_target
from ditscope.runs.writer import RunWriter
from ditscope.sampling.draw import Report, record_job
from ditscope.sampling.job import Job
from ditscope.sampling.recorder import manifest_of


def record_together(
    job: Job, path: Path, group: Group, *, overwrite: bool = False, report: Report | None = None
) -> Path:
    """Draw this rank's share of `job`; when it returns, the run at `path` is whole.

    Batches that an earlier, interrupted call has finished are not drawn again.

    Args:
        job: The same on every rank, its pipeline on this rank's device.
        path: The run, the same on every rank and on a disk that all of them see.
        group: This rank and the others.
        overwrite: Replace a run that is already there, once the new one is complete.
        report: Called after every evaluation of the network for this rank's share.

    Raises:
        ResourceError: the run cannot be written, parts of another run are in its place, or another
            rank is gone.
        NumericalError, NothingWatched: as `ditscope.sampling.draw.sample`.
    """
    manifest = manifest_of(job)
    with contextlib.ExitStack() as stack:
        target = check_target(path, overwrite=overwrite)
        parts, todo, writer = Parts(target, manifest), [], None
        if group.rank == 0:
            writer = stack.enter_context(
                RunWriter(target, manifest, overwrite=overwrite, at_once=True)
            )
            todo = parts.prepare(overwrite=overwrite)
        share = group.from_first(todo)[group.rank :: group.size]
        _draw(job, parts, share, group, report)
        group.wait_for_all()
        if writer:
            merge(parts.runs(), manifest, writer)
            parts.remove()
        group.wait_for_all()
    return target


def _draw(job: Job, parts: Parts, share: list[int], group: Group, report: Report | None) -> None:
    """Draw the batches of `share`, one after the other."""
    each = len(job.plan.evaluations)
    for position, number in enumerate(share):
        left = [sample for later in share[position:] for sample in job.batches[later]]
        group.note(
            f"while it drew {sample_text(list(job.batches[number]))}; of its share "
            f"{sample_text(left)} are not drawn; finished ones are in {parts.folder}"
        )
        record_job(
            job.part(job.batches[number]),
            parts.place(number),
            manifest=parts.manifest_of(number),
            overwrite=True,
            report=_in_share(report, position * each, len(share) * each),
        )
    group.note("when its share was drawn")


def _in_share(report: Report | None, before: int, total: int) -> Report | None:
    """Progress of one batch, told as that of the share."""
    return report and (lambda done, _: report(before + done, total))
