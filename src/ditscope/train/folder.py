"""The folder of a training: one process at a time, one configuration, no leftovers.

trainings/emoji/
  config.json       the whole configuration
  log.jsonl         a line every `log_every` steps, and one for everything that is worth a note
  ckpt-0000500/     checkpoints (see checkpoint.py)
  snapshots/        averages of the weights, every `snapshot_every` steps (see snapshots.py)
  previews/         what the averaged weights draw, every `preview_every` steps
  tensorboard/      the numbers of the log as curves, by option
  failure.json      the step that was not taken, if NaN or Inf ended the training
  lock              while a process trains
"""

from __future__ import annotations

import contextlib
import json
import shutil
import weakref
from pathlib import Path

from ditscope.core.atomic import UNFINISHED, new_file
from ditscope.core.lock import release_lock, take_lock
from ditscope.core.strict_json import read, validated
from ditscope.errors import BadConfig, BadDataset, ResourceError
from ditscope.train.config import RESUMABLE_CHANGES, TrainConfig

CONFIG, LOG, LOCK = "config.json", "log.jsonl", "lock"
SNAPSHOTS = "snapshots"


class TrainingFolder:
    """A folder that belongs to this process and to one configuration, until `close`.

    Opening it removes what a killed process left half written.
    """

    def __init__(self, path: Path, config: TrainConfig) -> None:
        """Claim `path` for `config`.

        Raises:
            ResourceError: another process trains in it (with its number), it holds other files, or
                it cannot be written.
            BadConfig: it holds a training with other settings; names the first that differs.
            BadDataset: the files of the data are not those the training began with.
        """
        self.path = path
        self._make()
        lock = path / LOCK
        held = take_lock(
            lock,
            busy="another training is running in this folder",
            fix="wait for it or stop it, or choose another folder",
        )
        self._release = weakref.finalize(self, release_lock, lock, held)
        try:
            self._clear()
            self._claim(config)
        except BaseException:
            self.close()
            raise

    @property
    def log(self) -> Path:
        """The file of JSON lines."""
        return self.path / LOG

    def close(self) -> None:
        """Let another process train here."""
        self._release()

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            names = {entry.name for entry in self.path.iterdir()}
        except OSError as reason:
            raise ResourceError(
                f"cannot hold a training: {reason.strerror}", file=self.path
            ) from None
        ours = {name for name in names if name == LOCK or UNFINISHED.fullmatch(name)}
        if names - ours and CONFIG not in names:
            raise ResourceError(
                "holds other files", file=self.path, fix="choose the name of a new folder"
            )

    def _clear(self) -> None:
        """Remove what a process that was killed had not finished."""
        for entry in (*self.path.iterdir(), *(self.path / SNAPSHOTS).glob("*")):
            if not UNFINISHED.fullmatch(entry.name):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    entry.unlink()

    def _claim(self, config: TrainConfig) -> None:
        """Save the configuration, or refuse a folder that holds another training."""
        path = self.path / CONFIG
        mine = config.model_dump(mode="json")
        if path.exists():
            theirs = validated(TrainConfig, read(path), file=path).model_dump(mode="json")
            for key in sorted(mine.keys() - RESUMABLE_CHANGES):
                if mine[key] == theirs[key]:
                    continue
                if key == "data_digest":
                    raise BadDataset(
                        "files came, went or changed their size since the training began",
                        file=config.data,
                        fix="put them back, or begin anew in another folder",
                    )
                raise BadConfig(
                    f"this training has {theirs[key]}, you asked for {mine[key]}",
                    file=path,
                    field=key,
                    fix="choose another folder, or the same settings",
                )
        with new_file(path) as beside:
            beside.write_text(json.dumps(mine, indent=1))
