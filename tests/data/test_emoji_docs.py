"""docs/emoji-scenes.md shows code that runs and the classes as they are."""

import re
from pathlib import Path

from ditscope.data.scenes import EmojiScenes

PAGE = (Path(__file__).parents[2] / "docs" / "emoji-scenes.md").read_text("utf-8")


def test_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    found: dict[str, object] = {}
    exec(example, found)
    assert found["fox"].label == 2
    assert found["images"].shape == (64, 64, 64, 3)


def test_every_class_is_listed_with_its_index():
    listed = re.findall(r"(\d+) ([a-z ]+?) [·|]", PAGE)
    assert [(int(index), name) for index, name in listed] == list(
        enumerate(EmojiScenes.class_names)
    )
