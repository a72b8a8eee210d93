"""`ditscope sample-ddp` as it is typed: processes that start, share, die, and leave nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from ditscope.distributed.launch import launch
from ditscope.errors import BadRun, DitscopeError, ResourceError
from ditscope.pipeline import load
from ditscope.runs.reader import open_run
from ditscope.sampling.draw import record_job
from ditscope.sampling.job import make_job
from tests.distributed.conftest import contents

posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture
def line(pipeline_folder, tmp_path, monkeypatch):
    """`line(options)`: what is typed after `ditscope`; with the small pipeline, in a new folder."""
    monkeypatch.chdir(tmp_path)

    def make(*options: object) -> list[str]:
        model = ("--model", pipeline_folder, "--dtype", "float32", "--device", "cpu")
        return ["sample-ddp", *map(str, (*model, *options))]

    return make


def expected(pipeline_folder, path, count, **settings):
    """The run of one process."""
    pipe = load(pipeline_folder, dtype="float32")
    labels = [index * 5 // min(count, 5) for index in range(min(count, 5))]
    labels = [labels[index % len(labels)] for index in range(count)]
    return contents(record_job(make_job(pipe, labels, settings), path).path)


def test_two_processes_draw_the_run_of_one(cli, line, pipeline_folder, tmp_path):
    options = ("--num-samples", 5, "--batch-size", 2, "--steps", 3, "--seed", 7, "--json")
    code, out, err = cli(
        *line("--num-gpus", 2, "--attention-log-dir", "./attention_logs", *options)
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["run"] == str(tmp_path / "attention_logs")
    one = expected(pipeline_folder, tmp_path / "one", 5, batch_size=2, steps=3, seed=7)
    assert contents(tmp_path / "attention_logs") == one
    assert sorted(os.listdir()) == ["attention_logs", "one"]
    assert not [child for child in psutil.Process().children() if "spawn_main" in cmdline(child)]


def cmdline(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


class Started:
    """The command in a process of its own, and the ranks it has started."""

    def __init__(self, arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ditscope", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.ranks: list[psutil.Process] = []

    def wait_for(self, *paths):
        """Wait until these are there, and note the ranks."""
        while not all(path.exists() for path in paths):
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.ranks = [child for child in children if "spawn_main" in cmdline(child)]

    def rank_that_writes(self, folder):
        """The process that has the lock of a part."""
        owner = folder.with_name(f"{folder.name}.lock").read_text().split()[1]
        return next(rank for rank in self.ranks if rank.pid == int(owner))

    def end(self):
        """Exit code and messages, when all processes have ended."""
        out, err = self.process.communicate(timeout=300)
        _, alive = psutil.wait_procs(self.ranks, timeout=120)
        assert alive == []
        return self.process.returncode, out, err


@posix
def test_a_killed_rank_is_reported_and_the_same_command_draws_the_rest(
    cli, line, pipeline_folder, tmp_path
):
    options = ("--num-samples", 6, "--batch-size", 2, "--steps", 200, "--out", "run")
    command = Started(line("--num-gpus", 2, *options))
    # Batches 0 and 2 are those of rank 0, batch 1 that of rank 1.
    parts = tmp_path / "run.parts"
    command.wait_for(parts / "00000" / "COMPLETE", parts / "00002")
    command.rank_that_writes(parts / "00002").send_signal(signal.SIGKILL)
    code, out, err = command.end()
    assert (code, out) == (4, "")
    assert err == (
        "error: process 0 was ended by SIGKILL while it drew samples 4 to 5; of its share samples "
        f"4 to 5 are not drawn; finished ones are in {parts}\n"
        "  what is finished stays; the same command, with that --out, does the rest\n"
    )
    first = open_run(parts / "00000")
    assert first.complete
    drawn = contents(first.path)
    assert not (tmp_path / "run").exists()

    assert cli(*line("--num-gpus", 2, *options)).code == 0
    one = expected(pipeline_folder, tmp_path / "one", 6, batch_size=2, steps=200, metrics=())
    assert contents(tmp_path / "run") == one
    assert drawn["images/0001.png"] == one["images/0001.png"]
    assert sorted(os.listdir()) == ["one", "run"]


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_process_outlives_the_command(line, tmp_path, number, code):
    options = ("--num-samples", 2, "--batch-size", 1, "--steps", 1000, "--out", "run")
    command = Started(line("--num-gpus", 2, *options))
    parts = tmp_path / "run.parts"
    command.wait_for(parts / "00000", parts / "00001")  # both ranks draw
    assert len(command.ranks) == 2
    if number == signal.SIGINT:
        os.killpg(command.process.pid, number)  # as a terminal sends it: to all of them
    else:
        command.process.send_signal(number)
    found, out, err = command.end()
    assert (found, out) == (code, "")
    assert "Traceback" not in err
    assert os.listdir() == ["run.parts"]
    assert sorted(os.listdir(parts)) == ["00000", "00001"]  # no lock, nothing half written
    for batch in ("00000", "00001"):
        assert len(open_run(parts / batch, allow_partial=True).steps) >= 1


def fail(group, how):
    """What a rank does in the tests below."""
    group.note("while it did nothing")
    if how == "signal":
        signal.raise_signal(signal.SIGTERM)
    if how == "typed":
        raise BadRun("is no run", file="runs/x", field="steps", expected="more", fix="try again")
    raise {"memory": MemoryError("1 TB"), "bug": KeyError("blocks.3")}[how]


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("signal", ResourceError, "process 0 was ended by SIGTERM while it did nothing\n  what is"),
        ("typed", BadRun, "runs/x: steps: process 0: is no run; expected more\n  try again"),
        ("memory", ResourceError, "process 0: out of memory: 1 TB\n  try a smaller batch"),
        ("bug", DitscopeError, "this is a bug in ditscope: process 0: KeyError: 'blocks.3'"),
    ],
)
def test_how_a_process_ended_is_told(how, kind, message):
    with pytest.raises(DitscopeError) as caught:
        launch(fail, (how,), processes=1)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(message)


def torchrun(arguments, processes):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [sys.executable, *launcher, "-m", "ditscope", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_under_torchrun_with_a_process_too_many(line, pipeline_folder, tmp_path):
    done = torchrun(line("--num-samples", 2, "--steps", 2, "--out", "run", "--json"), 2)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(tmp_path / "run")
    assert "note: 1 of 2 processes have nothing to draw: 2 pictures are 1 batches" in done.stderr
    assert contents(tmp_path / "run") == expected(
        pipeline_folder, tmp_path / "one", 2, steps=2, metrics=()
    )


def test_an_error_of_the_ranks_is_the_command_s(cli, line):
    code, out, err = cli(*line("--num-gpus", 2, "--class", "bumblebee", "--json"))
    assert (code, out) == (2, "")
    said = json.loads(err)
    assert (said["error"], said["field"]) == ("BadRequest", "class")
    assert "there is no class 'bumblebee'" in said["problem"]
    assert not os.path.exists("runs")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--num-gpus", "0"], 2, "--num-gpus"),
        (["--num-gpus", "-2"], 2, "--num-gpus"),
        (["--num-gpus", "two"], 2, "--num-gpus"),
        (["--num-gpus", "1000"], 2, "--num-gpus"),
        (["--num-samples", "0"], 2, "--num-samples"),
        (["--batch-size", "0"], 2, "--batch-size"),
        (["--device", "cuda:1"], 2, "every process has its own"),
        (["--device", "cuda"], 4, "`cpu` works"),
        (["--out", "a", "--attention-log-dir", "b"], 2, "both name the folder"),
        (["--attention-log-dir", ""], 2, "found an empty name"),
        (["--out", "missing/run"], 4, "its parent folder does not exist"),
        (["--out", "full"], 4, "holds other files"),
        (["--attention-log-dir", "old"], 4, "already holds a run"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_bad_options_start_no_process(
    cli, line, pipeline_folder, tmp_path, monkeypatch, arguments, code, words
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(
        "ditscope.distributed.launch.launch", lambda *_, **__: pytest.fail("started")
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    if "old" in arguments:
        expected(pipeline_folder, tmp_path / "old", 1, steps=1)
    before = sorted(os.listdir())
    result = cli(*line(*arguments))
    assert (result.code, result.out) == (code, "")
    assert words in result.err
    assert sorted(os.listdir()) == before


def test_more_processes_than_gpus(cli, line, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    result = cli(*line("--device", "cuda", "--num-gpus", "2"))
    assert result.code == 4
    assert "2 asked for, 1 here" in result.err


@pytest.mark.parametrize("asked", [1, 3])
def test_torchrun_and_the_option_may_not_disagree(cli, line, monkeypatch, asked):
    """A group of one process, as torchrun would start it."""
    launched = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}
    for name, value in {**launched, "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    result = cli(*line("--num-gpus", str(asked), "--steps", "1", "--num-samples", "1"))
    assert result.code == (0 if asked == 1 else 2)
    assert (asked == 1) or "expected 1, as torchrun started" in result.err
