"""Settings for all tests. They are made before torch or matplotlib is imported by a test."""

import os
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not Path("/dev/nvidiactl").exists():  # no GPU: kernels for one run in Triton's interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")

# No deadline: a slow machine is no failure. The same examples every time: nor is chance.
settings.register_profile("ditscope", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("ditscope")


class Outcome(NamedTuple):
    """What one run of the `ditscope` command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys):
    """The `ditscope` command, in this process: `cli("sample", "--steps", "2") -> Outcome`."""
    from ditscope.cli.main import main

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = main(arguments)
        return Outcome(code, *capsys.readouterr())

    return call
