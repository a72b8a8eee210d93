"""The bundled sheet is whole, and a damaged one is refused by name."""

from importlib import resources

import numpy as np
import pytest

from ditscope.data.archive import (
    SHEET_SIZE,
    TILE,
    TILES_PER_ROW,
    bundled_sheet,
    read_sheet,
    sprite_at,
)
from ditscope.data.classes import CLASSES, STYLES
from ditscope.errors import BadDataset

# Networks are trained on this order: it may only ever grow at the end, in a new archive.
ORDER = (
    "dog face, cat face, fox, lion, tiger face, panda, koala, frog, pig face, monkey face, "
    "penguin, owl, butterfly, lady beetle, turtle, spouting whale, automobile, bus, tractor, "
    "rocket, sailboat, locomotive, airplane, house, castle, church, tent, cactus, palm tree, "
    "evergreen tree, sunflower, tulip, mushroom, red apple, banana, watermelon, strawberry, "
    "hamburger, pizza, doughnut, "
    "rabbit face, cow face, chicken, elephant, giraffe, duck, flamingo, tropical fish, octopus, "
    "crab, snail, honeybee, fire engine, helicopter, flying saucer, hut, shinto shrine, "
    "cherry blossom, maple leaf, four leaf clover, pear, cherries, grapes, pineapple, avocado, "
    "carrot, broccoli, ear of corn, french fries, soft ice cream, birthday cake, hot beverage"
)


def test_order_of_classes_and_styles_is_kept():
    assert ", ".join(entry.name for entry in CLASSES) == ORDER
    assert STYLES == ("noto", "twemoji", "fluent")
    assert len({entry.code for entry in CLASSES}) == len(CLASSES) == 72


def test_every_tile_holds_a_centred_sprite_on_black_transparency():
    sheet = read_sheet(bundled_sheet())
    assert sheet.size == SHEET_SIZE
    pixels = np.array(sheet)
    assert not pixels[pixels[..., 3] == 0].any()
    seen = set()
    for tile in range(len(CLASSES) * len(STYLES)):
        row, column = divmod(tile, TILES_PER_ROW)
        picture = pixels[row * TILE :, column * TILE :][:TILE, :TILE]
        seen.add(picture.tobytes())
        ys, xs = np.nonzero(picture[..., 3])
        for low, high in ((ys.min(), ys.max()), (xs.min(), xs.max())):
            assert abs(int(low) + int(high) - (TILE - 1)) <= 1
        assert max(np.ptp(ys), np.ptp(xs)) >= 50
    assert len(seen) == len(CLASSES) * len(STYLES)


def test_licences_lie_beside_the_pictures():
    folder = resources.files("ditscope.data") / "emoji"
    notice = (folder / "ATTRIBUTION.md").read_text("utf-8")
    for wanted in ("Copyright 2020 Twitter, Inc and other contributors", "CC-BY 4.0", "Changes"):
        assert wanted in notice
    for file, words in {
        "LICENSE-noto.txt": "Apache License",
        "LICENSE-twemoji.txt": "Creative Commons Attribution 4.0 International Public License",
        "LICENSE-fluent.txt": "Copyright (c) Microsoft Corporation",
        "LICENSE-emoji-data.txt": "Cal Henderson",
    }.items():
        assert file in notice
        assert words in (folder / file).read_text("utf-8")


@pytest.mark.parametrize("extent", [1, 10, 38, 54, 64, 109])
def test_sprite_has_the_asked_size_and_premultiplied_colours(extent):
    for label, style in ((0, 0), (19, 1), (71, 2)):
        sprite = sprite_at(label, style, extent)
        assert max(sprite.shape[:2]) == extent
        assert (sprite[..., :3] <= sprite[..., 3:]).all()
        with pytest.raises(ValueError, match="read-only"):
            sprite[0, 0, 0] = 1


def test_damaged_archive_is_refused(tmp_path):
    whole = bundled_sheet().read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (b"", whole[:-1], whole[: len(whole) // 2], bytes(flipped), whole + b"\0"):
        path = tmp_path / "sprites.png"
        path.write_bytes(content)
        with pytest.raises(BadDataset, match="damaged") as caught:
            read_sheet(path)
        assert caught.value.file == str(path)
        assert f"{len(content)} bytes" in str(caught.value)


def test_missing_archive_is_refused(tmp_path):
    with pytest.raises(BadDataset, match="cannot be read") as caught:
        read_sheet(tmp_path / "absent.png")
    assert caught.value.file == str(tmp_path / "absent.png")
