"""Batches that are drawn apart and merged: the run of one process, whatever came between."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from ditscope.distributed.draw import record_together
from ditscope.distributed.group import Group
from ditscope.distributed.parts import sample_text
from ditscope.errors import BadRun, ResourceError
from ditscope.pipeline import load
from ditscope.runs import merge as merging
from ditscope.runs.reader import open_run
from ditscope.sampling.draw import record_job
from ditscope.sampling.job import Job, make_job
from tests.distributed.conftest import contents

NAMES = ("ant", "bee", "cat", "dog", "eel")


def job_of(folder: Path, count: int = 5, **settings: object) -> Job:
    labels = [NAMES[index % 5] for index in range(count)]
    settings = {"steps": 3, "batch_size": 2, "seed": 4, **settings}
    return make_job(load(folder, dtype="float32"), labels, settings)


@dataclass(frozen=True)
class Alone(Group):
    """A group of one, and of several ranks that are threads of this process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    words: list[object] = field(default_factory=list)

    def from_first(self, words):
        if self.rank == 0:
            self.words[:] = [words]
        self.barrier.wait()
        said = self.words[0]
        self.barrier.wait()
        return said

    def wait_for_all(self):
        self.barrier.wait()


def draw(folder: Path, path: Path, *, ranks: int = 1, **settings: object) -> list[int]:
    """Draw with ranks that are threads; how many evaluations each made."""
    barrier, words, counts = threading.Barrier(ranks), [], [0] * ranks

    def work(rank: int) -> None:
        def report(done: int, total: int) -> None:
            counts[rank] += 1

        group = Alone(rank, ranks, rank, None, barrier, words)
        record_together(job_of(folder, **settings), path, group, report=report)

    threads = [threading.Thread(target=work, args=(r,), daemon=True) for r in range(1, ranks)]
    for thread in threads:
        thread.start()
    work(0)
    for thread in threads:
        thread.join()
    return counts


@pytest.mark.parametrize(
    "settings",
    [
        {"count": 4, "qk_steps": (0, 2)},
        {"count": 5, "qk_steps": (1,)},
        {"count": 3, "batch_size": 8, "qk_steps": (1,)},
        {"count": 5, "cfg_interval": (0.5, 0.99), "qk_steps": (0, 2), "sampler": "heun"},
        {"count": 5, "metrics": (), "sampler": "unipc"},
        {"count": 5, "metrics": ("entropy", "step_overlap"), "detail": "tokens"},
    ],
    ids=["even", "uneven", "one batch", "branches that come and go", "no statistics", "tokens"],
)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_run_is_that_of_one_process(pipeline_folder, tmp_path, settings, ranks):
    record_job(job_of(pipeline_folder, **settings), tmp_path / "one")
    draw(pipeline_folder, tmp_path / "many", ranks=ranks, **settings)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert sorted(os.listdir(tmp_path)) == ["many", "one"]
    run = open_run(tmp_path / "many")
    assert run.complete and run.verify().ok


def test_ranks_share_the_batches(pipeline_folder, tmp_path):
    assert draw(pipeline_folder, tmp_path / "run", ranks=2) == [2 * 3, 1 * 3]


def stop_after(evaluations: int):
    def report(done: int, total: int) -> None:
        if done == evaluations:
            raise KeyboardInterrupt

    return report


def interrupted(folder: Path, path: Path, evaluations: int, **settings: object) -> None:
    with pytest.raises(KeyboardInterrupt):
        record_together(job_of(folder, **settings), path, Alone(), report=stop_after(evaluations))


def test_what_is_finished_stays_and_the_rest_is_drawn(pipeline_folder, tmp_path):
    record_job(job_of(pipeline_folder), tmp_path / "one")
    interrupted(pipeline_folder, tmp_path / "run", 5)  # in the second of three batches
    assert sorted(os.listdir(tmp_path)) == ["one", "run.parts"]
    part = open_run(tmp_path / "run.parts" / "00000")
    assert np.array_equal(part.images, open_run(tmp_path / "one").images[:2])
    assert len(open_run(tmp_path / "run.parts" / "00001", allow_partial=True).steps) == 2
    with pytest.raises(BadRun, match=r"drawn, in .*run.parts; the same command draws the rest"):
        open_run(tmp_path / "run")
    assert draw(pipeline_folder, tmp_path / "run", ranks=2) == [3, 3]  # two batches of three
    assert contents(tmp_path / "run") == contents(tmp_path / "one")
    assert sorted(os.listdir(tmp_path)) == ["one", "run"]


def test_more_samples_of_the_same_run_are_added_to_what_is_there(pipeline_folder, tmp_path):
    interrupted(pipeline_folder, tmp_path / "run", 4, count=4)
    assert draw(pipeline_folder, tmp_path / "run", count=6) == [2 * 3]
    record_job(job_of(pipeline_folder, count=6), tmp_path / "one")
    assert contents(tmp_path / "run") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 5}, "seed"),
        ({"steps": 2}, "steps|sampler"),
        ({"cfg_scale": 3.0}, "guidance"),
        ({"batch_size": 3}, "labels|sample_seeds|batches"),
        ({"metrics": ()}, "statistics|metrics|steps"),
        ({"count": 1}, "labels|sample_seeds|batches"),
    ],
)
def test_parts_of_another_run_are_refused(pipeline_folder, tmp_path, change, field):
    interrupted(pipeline_folder, tmp_path / "run", 4)
    with pytest.raises(
        ResourceError, match=f"a part of another run: its ({field}) is not"
    ) as found:
        record_together(job_of(pipeline_folder, **change), tmp_path / "run", Alone())
    assert found.value.exit_code == 4
    assert open_run(tmp_path / "run.parts" / "00000").complete
    assert os.listdir(tmp_path) == ["run.parts"]


def test_fewer_samples_are_another_run(pipeline_folder, tmp_path):
    interrupted(pipeline_folder, tmp_path / "run", 8)  # in the third batch
    with pytest.raises(ResourceError, match="its number of samples is not the same"):
        record_together(job_of(pipeline_folder, count=4), tmp_path / "run", Alone())


def test_parts_of_another_run_give_way_on_request(pipeline_folder, tmp_path):
    interrupted(pipeline_folder, tmp_path / "run", 4)
    job = job_of(pipeline_folder, seed=9)
    record_together(job, tmp_path / "run", Alone(), overwrite=True)
    assert open_run(tmp_path / "run").manifest.seed == 9
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_stranger_s_files_are_never_removed(pipeline_folder, tmp_path, overwrite):
    (tmp_path / "run.parts").mkdir()
    (tmp_path / "run.parts" / "thesis.tex").touch()
    with pytest.raises(ResourceError, match=r"holds other files: thesis\.tex"):
        record_together(job_of(pipeline_folder), tmp_path / "run", Alone(), overwrite=overwrite)
    assert (tmp_path / "run.parts" / "thesis.tex").exists()


def test_another_run_in_its_place_is_refused_before_anything_is_drawn(pipeline_folder, tmp_path):
    record_job(job_of(pipeline_folder), tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(ResourceError, match="already holds a run"):
        record_together(job_of(pipeline_folder, seed=1), tmp_path / "run", Alone())
    assert contents(tmp_path / "run") == before
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("moment", ["while merging", "before parts are removed"])
def test_a_death_at_the_end_loses_nothing(pipeline_folder, tmp_path, monkeypatch, moment):
    def die(*arguments, **options):
        raise KeyboardInterrupt

    place = "ditscope.runs.writer.RunWriter.write_final"
    if moment != "while merging":
        place = "ditscope.distributed.parts.Parts.remove"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, die)
        record_together(job_of(pipeline_folder), tmp_path / "run", Alone())
    assert (tmp_path / "run").exists() == (moment != "while merging")  # whole or not at all
    group = Alone()
    record_together(job_of(pipeline_folder), tmp_path / "run", group, overwrite=True)
    assert open_run(tmp_path / "run").verify().ok
    assert os.listdir(tmp_path) == ["run"]


def test_a_damaged_part_is_drawn_again(pipeline_folder, tmp_path):
    interrupted(pipeline_folder, tmp_path / "run", 4)
    (tmp_path / "run.parts" / "00000" / "images" / "0001.png").unlink()
    assert draw(pipeline_folder, tmp_path / "run") == [3 * 3]
    record_job(job_of(pipeline_folder), tmp_path / "one")
    assert contents(tmp_path / "run") == contents(tmp_path / "one")


def test_where_the_disk_has_no_links_files_are_copied(pipeline_folder, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError

    settings = {"count": 4, "qk_steps": (1,)}
    record_job(job_of(pipeline_folder, **settings), tmp_path / "one")
    monkeypatch.setattr(os, "link", refuse)
    draw(pipeline_folder, tmp_path / "run", **settings)
    assert contents(tmp_path / "run") == contents(tmp_path / "one")


def test_devices_of_one_kind_may_share_a_run(pipeline_folder):
    from ditscope.sampling.recorder import manifest_of

    manifest = manifest_of(job_of(pipeline_folder))
    devices = {
        device: manifest.model_copy(
            update={"model": manifest.model.model_copy(update={"device": device})}
        )
        for device in ("cuda:0", "cuda:1", "cpu")
    }
    assert merging.first_difference(devices["cuda:0"], devices["cuda:1"]) is None
    assert merging.first_difference(devices["cuda:0"], devices["cpu"]) == "model.device"


@pytest.mark.parametrize(
    ("samples", "text"),
    [([0], "0"), ([0, 1, 2], "0 to 2"), ([0, 1, 4, 6, 7], "0 to 1, 4, 6 to 7")],
)
def test_samples_in_words(samples, text):
    assert sample_text(samples) == f"samples {text}"
