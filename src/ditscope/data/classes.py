"""What the bundled emoji scenes show: 72 classes in three drawing styles.

A trained network knows a class by its position in `CLASSES` and the archive stores a sprite by its
position in both tables, so both orders are promises: never sort, insert or remove. New classes go
to the end.
"""

from __future__ import annotations

from typing import NamedTuple


class EmojiClass(NamedTuple):
    """A class: its CLDR short name in lower case and its code points as emoji files spell them."""

    name: str
    code: str


STYLES = ("noto", "twemoji", "fluent")

CLASSES = (
    # animals
    EmojiClass("dog face", "1f436"),
    EmojiClass("cat face", "1f431"),
    EmojiClass("fox", "1f98a"),
    EmojiClass("lion", "1f981"),
    EmojiClass("tiger face", "1f42f"),
    EmojiClass("panda", "1f43c"),
    EmojiClass("koala", "1f428"),
    EmojiClass("frog", "1f438"),
    EmojiClass("pig face", "1f437"),
    EmojiClass("monkey face", "1f435"),
    EmojiClass("penguin", "1f427"),
    EmojiClass("owl", "1f989"),
    EmojiClass("butterfly", "1f98b"),
    EmojiClass("lady beetle", "1f41e"),
    EmojiClass("turtle", "1f422"),
    EmojiClass("spouting whale", "1f433"),
    # vehicles
    EmojiClass("automobile", "1f697"),
    EmojiClass("bus", "1f68c"),
    EmojiClass("tractor", "1f69c"),
    EmojiClass("rocket", "1f680"),
    EmojiClass("sailboat", "26f5"),
    EmojiClass("locomotive", "1f682"),
    EmojiClass("airplane", "2708-fe0f"),
    # buildings
    EmojiClass("house", "1f3e0"),
    EmojiClass("castle", "1f3f0"),
    EmojiClass("church", "26ea"),
    EmojiClass("tent", "26fa"),
    # plants
    EmojiClass("cactus", "1f335"),
    EmojiClass("palm tree", "1f334"),
    EmojiClass("evergreen tree", "1f332"),
    EmojiClass("sunflower", "1f33b"),
    EmojiClass("tulip", "1f337"),
    EmojiClass("mushroom", "1f344"),
    # food
    EmojiClass("red apple", "1f34e"),
    EmojiClass("banana", "1f34c"),
    EmojiClass("watermelon", "1f349"),
    EmojiClass("strawberry", "1f353"),
    EmojiClass("hamburger", "1f354"),
    EmojiClass("pizza", "1f355"),
    EmojiClass("doughnut", "1f369"),
    # more animals
    EmojiClass("rabbit face", "1f430"),
    EmojiClass("cow face", "1f42e"),
    EmojiClass("chicken", "1f414"),
    EmojiClass("elephant", "1f418"),
    EmojiClass("giraffe", "1f992"),
    EmojiClass("duck", "1f986"),
    EmojiClass("flamingo", "1f9a9"),
    EmojiClass("tropical fish", "1f420"),
    EmojiClass("octopus", "1f419"),
    EmojiClass("crab", "1f980"),
    EmojiClass("snail", "1f40c"),
    EmojiClass("honeybee", "1f41d"),
    # more vehicles
    EmojiClass("fire engine", "1f692"),
    EmojiClass("helicopter", "1f681"),
    EmojiClass("flying saucer", "1f6f8"),
    # more buildings
    EmojiClass("hut", "1f6d6"),
    EmojiClass("shinto shrine", "26e9-fe0f"),
    # more plants
    EmojiClass("cherry blossom", "1f338"),
    EmojiClass("maple leaf", "1f341"),
    EmojiClass("four leaf clover", "1f340"),
    # more food
    EmojiClass("pear", "1f350"),
    EmojiClass("cherries", "1f352"),
    EmojiClass("grapes", "1f347"),
    EmojiClass("pineapple", "1f34d"),
    EmojiClass("avocado", "1f951"),
    EmojiClass("carrot", "1f955"),
    EmojiClass("broccoli", "1f966"),
    EmojiClass("ear of corn", "1f33d"),
    EmojiClass("french fries", "1f35f"),
    EmojiClass("soft ice cream", "1f366"),
    EmojiClass("birthday cake", "1f382"),
    EmojiClass("hot beverage", "2615"),
)
