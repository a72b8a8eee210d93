"""Golden tensors of the published diffusion, by file name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"

Golden = tuple[dict[str, Tensor], dict[str, str]]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """`golden(name)` -> tensors and metadata of `tests/golden/<name>.safetensors`."""

    def load(name: str) -> Golden:
        with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()

    return load
