"""The examples run as they are, without a network or a GPU."""

import runpy
import sys

from PIL import Image

from tests.contracts.tree import ROOT


def test_watch_diffusers(monkeypatch, tmp_path, capsys):
    """A pipeline of diffusers, drawn plain and watched: the same pictures, and a figure."""
    monkeypatch.setattr(sys, "argv", ["watch_diffusers.py", "--steps", "2", "--out", "seen.png"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    runpy.run_path(str(ROOT / "examples" / "watch_diffusers.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "8 attention calls in each of 2 forwards" in printed
    assert "pictures the same bit for bit: True" in printed
    with Image.open(tmp_path / "seen.png") as figure:
        assert figure.size == (1440, 432)
        assert len(figure.convert("RGB").getcolors(2**24)) > 100  # something is drawn
