"""`ditscope sample`: draw pictures, and record how."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ditscope.cli.console import messages, print_json, progress, results
from ditscope.cli.sample_options import SampleOptions, note, run_folder, with_sample_options

if TYPE_CHECKING:
    from ditscope.runs.reader import Run
    from ditscope.sampling.job import Job

FIGURES = "figures"


@with_sample_options
def sample(
    options: SampleOptions,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Draw pictures. The run is kept: latents, pictures and, if asked for, attention."""
    options.check_out()
    pipe = options.pipeline(device)
    note(pipe)
    job = options.job(pipe)
    with run_folder(options.out, job) as folder:
        run = record(job, folder, overwrite=options.overwrite)
    show(run, gallery(run), as_json=options.json)


def record(job: Job, out: Path, *, overwrite: bool) -> Run:
    """Sample into `out` behind a progress bar."""
    from ditscope.runs.layout import MANIFEST
    from ditscope.sampling.draw import record_job

    with progress() as bar:
        task = bar.add_task("drawing", total=len(job.plan.evaluations))
        try:
            return record_job(
                job,
                out,
                overwrite=overwrite,
                report=lambda done, _: bar.update(task, completed=done),
            )
        except BaseException:  # a signal too
            if not overwrite and (out / MANIFEST).exists():
                messages().print(f"the steps so far are kept in {out}; --overwrite draws it anew")
            raise


def gallery(run: Run) -> list[tuple[Path, str]]:
    """Draw what the run can show, into a folder of its own; each picture and its meaning."""
    from ditscope.plot.gallery import save_gallery

    figures = run.path / FIGURES
    figures.mkdir(exist_ok=True)
    with messages().status("plotting"):
        return save_gallery(run, figures)


def show(run: Run, pictures: list[tuple[Path, str]], *, as_json: bool) -> None:
    """Say what was made, where it is, and what to type next."""
    if as_json:
        print_json({"run": str(run.path), "pictures": [str(path) for path, _ in pictures]})
        return
    console = results()
    console.print(f"run       {run.path}")
    for path, meaning in pictures:
        console.print(f"{path.stem:<9} {path}  ({meaning})")
    console.print(f"next      ditscope info {run.path}")
