"""Pictures to learn from: the bundled emoji scenes. numpy and Pillow only: no torch."""
