"""Replayed attention beside the run: bounded, evictable, and never trusted more than a replay."""

import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ditscope.errors import BadRequest
from ditscope.runs import replay
from ditscope.runs.attention_rows import Operands
from ditscope.runs.outputs import Agreement
from ditscope.runs.reader import open_run
from ditscope.runs.repair import repair_run
from tests.runs.toy import Toy, manifest_of

WHOLE = Toy(manifest_of(qk_steps=(0, 1, 2)))
TOY = replace(WHOLE, manifest=WHOLE.manifest.model_copy(update={"qk_steps": (), "qk_dtype": None}))
ENTRY_BYTES = 1024 + 2 * 2 * (6 * 4 * 2 + 6) * 4 + 32
AGREED = Agreement(exact=False, difference=1e-6, largest=2.0, elsewhere="recorded on another CPU")


@pytest.fixture
def folder(tmp_path):
    return TOY.write(tmp_path / "run")


@pytest.fixture
def calls(monkeypatch):
    """Steps and samples that were replayed; the replay module answers from `WHOLE`."""
    asked = []

    def replay_step(run, step, sample):
        asked.append((step, sample))
        found = {}
        for layer, scale in enumerate(WHOLE.manifest.scales):
            for order, branch in enumerate(WHOLE.manifest.steps[step].branches):
                parts = (part[order, sample] for part in WHOLE.qk[step, layer][0])
                found[step, branch, sample, layer] = Operands(
                    *parts, scale, "replayed", agreement=AGREED
                )
        return found

    monkeypatch.setitem(sys.modules, replay.REPLAYER, SimpleNamespace(replay_step=replay_step))
    return asked


def look(folder, step=1, sample=0, layer=1, branch="uncond", **options):
    row = open_run(folder, **options).attention(layer, 0, step, (0, 1), sample, branch)
    expected = WHOLE.probabilities(step, layer, branch, sample)[0, 1]
    np.testing.assert_allclose(row.values.ravel(), expected, atol=1e-6)
    return row


def entries(folder):
    return sorted((folder / "cache").iterdir()) if (folder / "cache").exists() else []


def test_one_replay_serves_all_who_come_later(folder, calls):
    first = look(folder)
    assert len(entries(folder)) == 2  # layers
    assert {each.stat().st_size for each in entries(folder)} == {ENTRY_BYTES}
    for layer, branch in [(1, "uncond"), (1, "cond"), (0, "cond")]:
        row = look(folder, layer=layer, branch=branch)
        assert row.attrs["source"] == "replayed" and "within 1.0e-06" in row.attrs["verified"]
        assert "recorded on another CPU" in row.attrs["verified"]
    assert calls == [(1, 0)] and first.attrs == look(folder).attrs
    look(folder, sample=1)
    look(folder, step=2)
    assert calls == [(1, 0), (1, 1), (2, 0)]
    run = open_run(folder)
    assert run.verify().ok and run.replays.usage() == (6, 6 * ENTRY_BYTES)


def test_a_cached_map_needs_no_torch(folder, calls):
    look(folder)
    code = f"""
import sys
sys.modules["torch"] = None
from ditscope.runs.reader import open_run
row = open_run({str(folder)!r}).attention(1, 0, 1, (0, 1))
assert row.attrs["source"] == "replayed"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_was_used_longest_ago_goes(folder, calls):
    limit = 4 * ENTRY_BYTES + 100
    for step, sample in [(0, 0), (1, 0)]:
        look(folder, step=step, sample=sample, cache_bytes=limit)
    for number, entry in enumerate(entries(folder)):
        os.utime(entry, (number, number))
    look(folder, step=0, cache_bytes=limit)  # its layer 1 is now the newest
    look(folder, step=2, cache_bytes=limit)
    left = [entry.name.split("-") for entry in entries(folder)]
    assert [(int(name[1]), int(name[5])) for name in left] == [(0, 1), (1, 1), (2, 0), (2, 1)]
    assert sum(entry.stat().st_size for entry in entries(folder)) <= limit


@pytest.mark.parametrize("limit", [0, ENTRY_BYTES])
def test_without_room_nothing_is_kept(folder, calls, limit):
    for _ in range(2):
        look(folder, cache_bytes=limit)
    assert not entries(folder) and len(calls) == 2


def test_the_switch(folder, calls, monkeypatch):
    monkeypatch.setenv("DITSCOPE_REPLAY_CACHE", "0")
    look(folder)
    assert not (folder / "cache").exists()
    monkeypatch.setenv("DITSCOPE_REPLAY_CACHE", "1")
    assert open_run(folder).replays.limit == 2**20
    for bad in ("-1", "1.5", "no", "9" * 10, "²"):
        monkeypatch.setenv("DITSCOPE_REPLAY_CACHE", bad)
        with pytest.raises(BadRequest, match=r"DITSCOPE_REPLAY_CACHE: found .* a whole number"):
            open_run(folder)
    with pytest.raises(BadRequest, match="cache_bytes: found -1"):
        open_run(folder, cache_bytes=-1)


def flipped(place):
    def change(path):
        data = bytearray(path.read_bytes())
        data[place] ^= 4
        path.write_bytes(data)

    return change


def other_run(path):
    """The entry of a run that only differs in its latents."""
    other = Toy(WHOLE.manifest, seed=5)
    elsewhere = replace(other, manifest=TOY.manifest).write(path.parent.parent.parent / "other")
    look(elsewhere)
    (entry,) = (each for each in entries(elsewhere) if each.name[:33] == path.name[:33])
    assert entry.name != path.name
    shutil.copyfile(entry, path)


DAMAGE = {
    "header": flipped(5),
    "numbers": flipped(1500),
    "digest": flipped(-1),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"0"),
    "empty": lambda path: path.write_bytes(b""),
    "huge": lambda path: os.truncate(path, 2**40),
    "link": lambda path: (path.rename(path.parent / "x"), path.symlink_to(path.parent / "x")),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "another run": other_run,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_entry_is_as_good_as_none_and_made_again(folder, calls, damage):
    look(folder)
    entry = entries(folder)[1]
    good = entry.read_bytes()
    DAMAGE[damage](entry)
    calls.clear()
    look(folder)
    assert calls == [(1, 0)]
    assert entry.read_bytes() == good and not entry.is_symlink()
    look(folder)
    assert calls == [(1, 0)]


def test_a_link_in_place_of_the_folder_is_not_followed(folder, calls, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (folder / "cache").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        look(folder)
    assert len(calls) == 2 and not any((tmp_path / "elsewhere").iterdir())


def test_files_of_others_stay(folder, calls):
    (folder / "cache").mkdir()
    (folder / "cache/mine.txt").write_text("x" * 5000)
    (folder / "cache/step-00000-sample-0000-layer-000-0123456789abcdef.tmp-01234567").write_text(
        "x"
    )
    look(folder, cache_bytes=2 * ENTRY_BYTES)
    names = [each.name for each in entries(folder)]
    assert "mine.txt" in names and len(names) == 3


@pytest.mark.parametrize("operation", ["open", "write", "rename", "statvfs"])
def test_a_disk_that_cannot_be_written_is_no_error(folder, calls, operation, monkeypatch):
    def refuse(*given, **options):
        raise OSError(28, "No space left on device")

    if operation == "write":
        monkeypatch.setattr("ditscope.runs.replay_cache.secrets.token_hex", refuse)
    elif operation == "open":
        monkeypatch.setattr("ditscope.runs.replay_cache.Path.mkdir", refuse)
    else:
        monkeypatch.setattr(os, {"rename": "rename", "statvfs": "fstatvfs"}[operation], refuse)
    look(folder)
    assert not entries(folder) and calls == [(1, 0)]


def test_a_disk_that_is_nearly_full_is_left_alone(folder, calls, monkeypatch):
    room = SimpleNamespace(f_bavail=10, f_frsize=ENTRY_BYTES)
    monkeypatch.setattr(os, "fstatvfs", lambda descriptor: room)
    look(folder)
    assert not entries(folder)


def test_many_readers_at_once(folder, calls):
    """Each with so little room that they throw out one another's entries."""
    errors = []

    def read(number):
        try:
            for turn in range(12):
                look(folder, (turn + number) % 3, turn % 2, cache_bytes=5 * ENTRY_BYTES)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not errors and all(".tmp-" not in each.name for each in entries(folder))


def test_it_survives_a_repair_and_a_move(folder, calls):
    look(folder)
    (folder / "images/0000.png").unlink()
    repair_run(folder)
    shutil.move(folder, folder.parent / "moved")
    look(folder.parent / "moved")
    assert calls == [(1, 0)]
