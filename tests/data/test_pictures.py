"""Folders of pictures: order, sizes, colours, and files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditscope.data.pictures import PictureFolder, UnreadablePicture, read_picture
from ditscope.errors import BadDataset


def photos(folder: Path, classes: int = 3, each: int = 4) -> Path:
    """Pictures of one colour: red tells the class, green the picture, by 40 a number."""
    for label in range(classes):
        (folder / f"class {label}").mkdir(parents=True)
        for number in range(each):
            colour = (label * 40, number * 40, 200)
            Image.new("RGB", (20, 10), colour).save(folder / f"class {label}" / f"{number}.png")
    return folder


def colours(images: np.ndarray) -> list[tuple[int, int]]:
    return [tuple((image[0, 0, :2] // 40).tolist()) for image in images]


def test_every_epoch_shows_every_picture_once_in_another_order(tmp_path: Path) -> None:
    data = PictureFolder(photos(tmp_path), size=(8, 12), seed=3)
    assert data.class_names == ("class 0", "class 1", "class 2") and len(data) == 12
    epochs = [data.batch(range(12 * epoch, 12 * epoch + 12)) for epoch in range(3)]
    orders = [colours(images) for images, _ in epochs]
    everything = [(label, number) for label in range(3) for number in range(4)]
    assert all(sorted(order) == everything for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    for (images, labels), order in zip(epochs, orders, strict=True):
        assert images.shape == (12, 8, 12, 3) and labels.tolist() == [label for label, _ in order]


def test_a_picture_does_not_depend_on_what_was_read_before(tmp_path: Path) -> None:
    folder = photos(tmp_path)
    rng = np.random.default_rng(0)
    for file in folder.rglob("*.png"):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(file)
    forward = PictureFolder(folder, size=(8, 8), seed=1, flip=True)
    all_at_once, labels = forward.batch(range(40))
    one_by_one = PictureFolder(folder, size=(8, 8), seed=1, flip=True)
    for index in reversed(range(40)):
        image, label = one_by_one.batch([index])
        assert np.array_equal(image[0], all_at_once[index]) and label[0] == labels[index]
    other, _ = PictureFolder(folder, size=(8, 8), seed=2, flip=True).batch(range(40))
    assert not np.array_equal(other, all_at_once)
    plain, _ = PictureFolder(folder, size=(8, 8), seed=1).batch(range(40))
    mirrored = [np.array_equal(a[:, ::-1], b) for a, b in zip(plain, all_at_once, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(plain, all_at_once, strict=True)]
    assert 8 < sum(mirrored) < 32 and sum(mirrored) + sum(kept) == 40


def test_files_that_are_no_pictures_are_counted_and_replaced(tmp_path: Path) -> None:
    folder = photos(tmp_path)
    whole = (folder / "class 0" / "0.png").read_bytes()
    (folder / "class 0" / "0.png").write_bytes(b"")
    (folder / "class 1" / "0.png").write_text("hello")
    (folder / "class 2" / "0.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (4, 4)).save(folder / "class 2" / "1.png", format="GIF")
    data = PictureFolder(folder, size=(8, 8), max_bad=4)
    images, _ = data.batch(range(24))
    bad = {file.relative_to(folder).as_posix() for file in data.bad}
    assert bad == {"class 0/0.png", "class 1/0.png", "class 2/0.png", "class 2/1.png"}
    good = {(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (2, 2), (2, 3)}
    assert set(colours(images)) == good
    again, _ = PictureFolder(folder, size=(8, 8), max_bad=4).batch(range(24))
    assert np.array_equal(images, again)
    with pytest.raises(BadDataset, match=r"pictures that cannot be read: 4.*expected at most 3"):
        PictureFolder(folder, size=(8, 8), max_bad=3).batch(range(24))


def test_a_folder_without_one_good_picture(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.jpg").write_text("no")
    with pytest.raises(BadDataset, match=r"cannot be read: 1, such as only/a\.jpg"):
        PictureFolder(tmp_path, size=(8, 8), max_bad=0).batch([0])


@pytest.mark.parametrize(
    ("made", "words"),
    [((), "holds no folders"), (("empty",), "holds no pictures"), (None, "cannot be read")],
)
def test_folders_that_are_no_data(tmp_path: Path, made, words: str) -> None:
    place = tmp_path / "data"
    if made is not None:
        place.mkdir()
        (place / "letter.txt").write_text("")
        for name in made:
            (place / name).mkdir()
            (place / name / "letter.txt").write_text("")
    with pytest.raises(BadDataset, match=words):
        PictureFolder(place, size=(8, 8))


def test_links_are_not_followed(tmp_path: Path) -> None:
    folder = photos(tmp_path / "data")
    (folder / "loop").symlink_to(folder)
    (folder / "class 0" / "9.png").symlink_to(folder / "class 1" / "0.png")
    assert len(PictureFolder(folder, size=(8, 8))) == 12


def test_the_digest_sees_files_come_and_go(tmp_path: Path) -> None:
    folder = photos(tmp_path)
    before = PictureFolder(folder, size=(8, 8)).digest()
    assert PictureFolder(folder, size=(16, 8), seed=4).digest() == before
    (folder / "class 0" / "0.png").rename(folder / "class 0" / "7.png")
    assert PictureFolder(folder, size=(8, 8)).digest() != before


def saved(tmp_path: Path, image: Image.Image, **options: object) -> np.ndarray:
    file = tmp_path / "a.png"
    image.save(file, **options)
    return read_picture(file, (image.height, image.width))


def test_colours(tmp_path: Path) -> None:
    grey = saved(tmp_path, Image.fromarray(np.full((4, 4), 257 * 100, np.uint16)))
    assert (grey == 100).all()
    assert (saved(tmp_path, Image.new("L", (4, 4), 7)) == 7).all()
    half = saved(tmp_path, Image.new("RGBA", (4, 4), (0, 0, 0, 128)))
    assert (half == 127).all()  # over white
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 30, 60, 90])
    assert (saved(tmp_path, palette) == [30, 60, 90]).all()
    assert (saved(tmp_path, palette, transparency=1) == 255).all()
    file = tmp_path / "b.jpg"
    Image.new("CMYK", (4, 4), (255, 0, 0, 0)).save(file)
    assert np.abs(read_picture(file, (4, 4)).astype(int) - [0, 255, 255]).max() < 4


def test_upright_and_cut_around_the_middle(tmp_path: Path) -> None:
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, 4:12] = 255
    assert saved(tmp_path, Image.fromarray(image)).shape == (8, 16, 3)
    assert (read_picture(tmp_path / "a.png", (8, 8)) == 255).all()
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    left = np.zeros((8, 8, 3), np.uint8)
    left[:, :4] = 255
    Image.fromarray(left).save(tmp_path / "c.png", exif=turned)
    upright = read_picture(tmp_path / "c.png", (8, 8))
    assert (upright[:4] == 255).all() and (upright[4:] == 0).all()


def test_a_picture_beyond_all_measure_is_refused_by_its_header(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    with pytest.raises(UnreadablePicture, match=r"20000 x 20000|exceeds limit"):
        read_picture(tmp_path / "a.png", (8, 8))
