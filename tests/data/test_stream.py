"""Streams of shards: the same pictures wherever reading begins; broken records are counted."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditscope.data.records import (
    RecordSettings,
    is_records,
    open_records,
    picture_bytes,
    records_digest,
)
from ditscope.data.stream import PictureStream, Place
from ditscope.errors import BadDataset

pytest.importorskip("datasets")

NAMES = ("cat", "dog", "fox")
SHARDS, EACH = 3, 7


def png(label: int, number: int) -> bytes:
    """One colour: red tells the class by 40, green the number of the record by 10."""
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (label * 40, number * 10, 200)).save(stream, format="PNG")
    return stream.getvalue()


def records(shard: int) -> list[tuple[bytes, int]]:
    numbers = range(shard * EACH, shard * EACH + EACH)
    return [(png(number % 3, number), number % 3) for number in numbers]


def parquet_shards(folder: Path, change=lambda shard, rows: rows) -> Path:
    """21 records in three shards, of which `change` may alter the rows."""
    import datasets

    folder.mkdir()
    kinds = datasets.Features(
        {"picture": datasets.Image(), "animal": datasets.ClassLabel(names=list(NAMES))}
    )
    for shard in range(SHARDS):
        rows = change(shard, records(shard))
        table = datasets.Dataset.from_dict(
            {
                "picture": [{"bytes": content, "path": None} for content, _ in rows],
                "animal": [label for _, label in rows],
            },
            features=kinds,
        )
        table.to_parquet(str(folder / f"{shard}.parquet"))
    return folder


def tar_shards(folder: Path) -> Path:
    """The same records as `parquet_shards`, as webdataset."""
    folder.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for number, (content, label) in enumerate(records(shard)):
                for end, data in (("png", content), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{shard}-{number:03d}.{end}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parquet_shards(tmp_path_factory.mktemp("stream") / "shards")


def stream(place: Path, seed: int = 1, **more) -> PictureStream:
    source = open_records(str(place), RecordSettings(), class_names=NAMES)
    return PictureStream(source, size=(4, 4), seed=seed, **{"block": 8, **more})


def numbers(images: np.ndarray) -> list[int]:
    return (images[:, 0, 0, 1] // 10).tolist()


def test_every_epoch_shows_every_record_once_in_another_order(shards: Path) -> None:
    data = stream(shards, block=SHARDS * EACH)
    orders = []
    for epoch in range(3):
        images, labels = data.batch(range(21 * epoch, 21 * epoch + 21))
        orders.append(numbers(images))
        assert sorted(orders[-1]) == list(range(21))
        assert labels.tolist() == [number % 3 for number in orders[-1]]
    assert orders[0] != orders[1] != orders[2] and data.bad == {}
    assert data.source.columns.class_names == NAMES and data.source.count() == 21


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_picture_does_not_depend_on_where_reading_begins(
    shards: Path, tmp_path: Path, kind: str
) -> None:
    place = shards if kind == "parquet" else tar_shards(tmp_path / "tars")
    whole = stream(place, flip=True)
    images, labels = whole.batch(range(60))
    anew = stream(place, flip=True)
    for first in (50, 12, 30):
        again, theirs = anew.batch(range(first, first + 10))
        assert np.array_equal(again, images[first : first + 10])
        assert theirs.tolist() == labels[first : first + 10].tolist()
    block, at = whole.start_of(55)
    assert block == 55 // 8 and at == Place(2, *divmod(48 - 42, EACH))
    noted = stream(place, flip=True)
    noted.starts_at(block, at)
    noted._read = lambda place, read=noted._read: read(place) if place == at else pytest.fail()
    again, _ = noted.batch(range(50, 60))
    assert np.array_equal(again[-4:], images[56:])


def test_both_kinds_of_shards_hold_the_same(shards: Path, tmp_path: Path) -> None:
    one, labels = stream(shards).batch(range(30))
    other, theirs = stream(tar_shards(tmp_path / "tars")).batch(range(30))
    assert np.array_equal(one, other) and np.array_equal(labels, theirs)
    assert is_records(str(shards)) and is_records("hf:some/name")
    assert not is_records(str(shards / "nothing")) and not is_records(str(tmp_path))


def test_records_that_are_no_pictures_are_counted_and_replaced(tmp_path: Path) -> None:
    def broken(shard: int, rows: list) -> list:
        rows[2] = (b"no picture", rows[2][1])
        rows[3] = (rows[3][0][:40], rows[3][1])
        rows[4] = (rows[4][0], -1)
        return rows

    place = parquet_shards(tmp_path / "broken", broken)
    data = stream(place, max_bad=9)
    images, _ = data.batch(range(42))
    bad = {f"record {at} of shard {shard}" for at in (2, 3, 4) for shard in range(3)}
    assert set(data.bad) == bad
    assert data.bad["record 2 of shard 0"] == "is none of JPEG, PNG, WEBP, BMP"
    assert "label is -1" in data.bad["record 4 of shard 1"]
    assert set(numbers(images)) == {n for n in range(21) if n % 7 not in (2, 3, 4)}
    again, _ = stream(place, max_bad=9).batch(range(42))
    assert np.array_equal(images, again)
    with pytest.raises(BadDataset, match=r"cannot be read: 9, such as record .*at most 8"):
        stream(place, max_bad=8).batch(range(42))


@pytest.mark.parametrize(
    ("kept", "words"), [(8192, "has no end mark"), (8192 + 540, "breaks off after 4 records")]
)
def test_an_archive_that_is_cut_short_is_counted(tmp_path: Path, kept: int, words: str) -> None:
    place = tar_shards(tmp_path / "tars")
    content = (place / "1.tar").read_bytes()
    (place / "1.tar").write_bytes(content[:kept])  # a record takes 2048 bytes
    data = stream(place, max_bad=1)
    images, _ = data.batch(range(32))
    assert list(data.bad) == ["shard 1 of 3"] and words in data.bad["shard 1 of 3"]
    assert set(numbers(images)) == {*range(11), *range(14, 21)}
    with pytest.raises(BadDataset, match="shard 1 of 3"):
        stream(place, max_bad=0).batch(range(32))


def test_the_digest_sees_shards_come_and_go(shards: Path, tmp_path: Path) -> None:
    place = parquet_shards(tmp_path / "copy")
    assert records_digest(str(place)) == records_digest(str(shards))
    (place / "2.parquet").unlink()
    assert records_digest(str(place)) != records_digest(str(shards))


def test_a_picture_that_is_named_and_not_held(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1, 1))
    assert picture_bytes({"bytes": None, "path": str(tmp_path / "a.png")}) == png(1, 1)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"image": "photo"}, "records.image: found 'photo'; expected one of picture, animal"),
        ({"label": "kind"}, "records.label: found 'kind'; expected one of picture, animal"),
    ],
)
def test_columns_that_are_not_there(shards: Path, said: dict, words: str) -> None:
    with pytest.raises(BadDataset, match=words):
        open_records(str(shards), RecordSettings(**said))


def test_classes_without_names(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="labels: the classes of column cls have no names"):
        open_records(str(tar_shards(tmp_path / "tars")), RecordSettings())


def test_what_cannot_be_opened(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    with pytest.raises(BadDataset, match="cannot be opened"):
        open_records(str(tmp_path), RecordSettings())
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(BadDataset, match=r"several kinds: \.parquet, \.tar"):
        open_records(str(tmp_path), RecordSettings())


def test_the_hub_is_asked_for_one_commit(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    class Known:
        sha = "c0ffee"

    def info(self: object, name: str) -> Known:
        if name != "some/animals":
            raise OSError("no such data set")
        return Known()

    asked: list[object] = []
    load = datasets.load_dataset

    def loaded(*names: object, **how: object):
        asked.extend([names, how])
        return load("parquet", data_dir=str(shards), split="train", streaming=True)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", loaded)
    assert records_digest("hf:some/animals") == "c0ffee"
    with pytest.raises(BadDataset, match="hf:some/plants: cannot be found: no such data set"):
        records_digest("hf:some/plants")
    settings = RecordSettings(subset="small", split="test")
    source = open_records("hf:some/animals", settings, revision="c0ffee")
    assert asked == [
        ("some/animals", "small"),
        {"split": "test", "revision": "c0ffee", "streaming": True},
    ]
    assert source.remote and source.columns.class_names == NAMES
    images, _ = PictureStream(source, size=(4, 4), block=21).batch(range(21))
    assert sorted(numbers(images)) == list(range(21))
