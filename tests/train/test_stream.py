"""Trainings on a stream: the same weights after a kill, and what is noted saves reading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ditscope.data.stream import PictureStream, Place
from ditscope.errors import BadConfig, BadDataset, BadRequest
from ditscope.train.checkpoint import newest_checkpoint
from ditscope.train.request import Request, resolve
from tests.data.test_stream import NAMES, parquet_shards, tar_shards
from tests.train.tiny import run, same

NETWORK = "hidden_size = 32\ndepth = 1\nnum_heads = 2\npatch_size = 4\n"
SHORT = ("save_every=3", "batch_size=5", "steps=9", "schedule=constant", "learning_rate=0.01")


def asked(base: Path, place: Path, *more: str, **options: str):
    (base / "net.toml").write_text(NETWORK)
    return resolve(
        Request(
            data=str(place),
            model=str(base / "net.toml"),
            image_size="8",
            objective="flow-x",
            settings=(*SHORT, "records.block=4", *more),
            **options,
        )
    )


def test_resuming_is_exact_and_begins_where_reading_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _ = asked(tmp_path, parquet_shards(tmp_path / "shards"))
    assert settings.labels == NAMES and settings.model.num_classes == 3
    assert settings.data_digest and settings.records.block == 4
    whole, _ = run(settings, tmp_path / "whole")
    run(settings.model_copy(update={"steps": 6}), tmp_path / "parts")
    checkpoint, _ = newest_checkpoint(tmp_path / "parts")
    assert checkpoint is not None and checkpoint.place == (7, 1, 0, 7)  # record 28: 21 an epoch
    begun: list[Place] = []
    read = PictureStream._read

    def noted(stream: PictureStream, place: Place):
        begun.append(place)
        return read(stream, place)

    monkeypatch.setattr(PictureStream, "_read", noted)
    parts, _ = run(settings, tmp_path / "parts")
    assert begun == [Place(1, 0, 7)]
    assert same(whole.model.state_dict(), parts.model.state_dict())
    assert same(whole.ema.state_dict(), parts.ema.state_dict())


def test_unreadable_records_are_in_the_log(tmp_path: Path) -> None:
    def broken(shard: int, rows: list) -> list:
        return [(b"", rows[0][1]), *rows[1:]] if shard == 1 else rows

    settings, _ = asked(tmp_path, parquet_shards(tmp_path / "shards", broken))
    with pytest.warns(UserWarning, match="left out record 0 of shard 1"):
        run(settings, tmp_path / "t")
    lines = [json.loads(line) for line in (tmp_path / "t" / "log.jsonl").read_text().splitlines()]
    (noted,) = [line for line in lines if line.get("event") == "unreadable picture"]
    assert noted["file"] == "record 0 of shard 1"


def test_shards_that_changed_are_refused(tmp_path: Path) -> None:
    place = parquet_shards(tmp_path / "shards")
    settings, _ = asked(tmp_path, place)
    run(settings.model_copy(update={"steps": 1}), tmp_path / "t")
    (place / "2.parquet").unlink()
    with pytest.raises(BadDataset, match="came, went or changed"):
        run(asked(tmp_path, place)[0], tmp_path / "t")


def test_archives_have_numbers_for_classes(tmp_path: Path) -> None:
    place = tar_shards(tmp_path / "tars")
    with pytest.raises(BadDataset, match=r"have no names; expected their names, or model\.num_cl"):
        asked(tmp_path, place)
    settings, _ = asked(tmp_path, place, "model.num_classes=3")
    assert settings.labels == ("0", "1", "2")
    named, _ = asked(tmp_path, place, 'labels=["cat", "dog", "fox"]')
    assert named.labels == NAMES
    with pytest.raises(BadRequest, match="heads: the number of pictures of this stream"):
        asked(tmp_path, place, "model.num_classes=3", heads="auto")
    with pytest.raises(BadConfig, match=r"records\.blok: unknown field"):
        asked(tmp_path, place, "records.blok=3")
