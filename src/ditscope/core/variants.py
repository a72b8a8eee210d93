"""The twelve published DiT variants, and what any DiT costs. Plain numbers, no torch.

Sizes and formulas: Peebles and Xie, "Scalable Diffusion Models with Transformers"
(arXiv:2212.09748), and the shapes of the published weights.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from ditscope.errors import BadRequest, foreign

SINUSOID_WIDTH = 256
"""Width of the timestep sinusoid that enters the time MLP."""

PUBLISHED_FID_PROTOCOL = (
    "FID-50K, ImageNet 256 x 256, 400K training steps, no guidance, 250 DDPM steps, ft-MSE decoder "
    "(arXiv:2212.09748)"
)

FidEvidence = Literal["authors", "summaries"]
"""Who states a number: the authors in their repository, or public summaries of the paper."""


@dataclass(frozen=True)
class Architecture:
    """The sizes that decide how many parameters a DiT has and how many multiply-adds it does."""

    hidden_size: int  # D
    depth: int
    patch_size: int
    tokens: int  # N
    mlp_width: int  # hidden channels of a block's MLP
    label_rows: int  # classes, and the null class where there is one
    in_channels: int = 4
    out_channels: int = 8

    @property
    def parameters(self) -> int:
        """Number of parameters, the frozen position table included."""
        d, area = self.hidden_size, self.patch_size**2
        block = 10 * d * d + 11 * d + 2 * d * self.mlp_width + self.mlp_width
        patches = self.in_channels * area * d + d
        time = d * d + (SINUSOID_WIDTH + 2) * d
        labels = self.label_rows * d
        final = 2 * d * d + 2 * d + self.out_channels * area * (d + 1)
        return self.depth * block + patches + time + labels + self.tokens * d + final

    @property
    def trainable_parameters(self) -> int:
        """Number of parameters without the frozen position table."""
        return self.parameters - self.tokens * self.hidden_size

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one forward of one row. The paper prints these as "Gflops"."""
        d, n, area = self.hidden_size, self.tokens, self.patch_size**2
        block = 4 * n * d * d + 2 * n * d * self.mlp_width + 2 * n * n * d + 6 * d * d
        patches = self.in_channels * area * n * d
        time = SINUSOID_WIDTH * d + d * d
        final = 2 * d * d + self.out_channels * area * n * d
        return self.depth * block + patches + time + final


@dataclass(frozen=True)
class Variant:
    """One published size. `fid` is measured by `PUBLISHED_FID_PROTOCOL`."""

    name: str
    hidden_size: int
    depth: int
    num_heads: int
    patch_size: int
    fid: float
    fid_evidence: FidEvidence
    note: str = ""

    def architecture(
        self, *, input_size: int = 32, num_classes: int = 1000, learn_sigma: bool = True
    ) -> Architecture:
        """Sizes for a square latent of `input_size` (32: 256 px, 64: 512 px), four channels."""
        return Architecture(
            hidden_size=self.hidden_size,
            depth=self.depth,
            patch_size=self.patch_size,
            tokens=(input_size // self.patch_size) ** 2,
            mlp_width=4 * self.hidden_size,
            label_rows=num_classes + 1,
            out_channels=8 if learn_sigma else 4,
        )


# name suffix: (width, depth, heads), then the FID of patch 8, 4 and 2.
_SIZES: dict[str, tuple[int, int, int]] = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
_FID: dict[str, dict[int, float]] = {
    "S": {2: 68.40, 4: 100.41, 8: 153.60},
    "B": {2: 43.47, 4: 68.38, 8: 122.74},
    "L": {2: 23.33, 4: 45.64, 8: 118.87},
    "XL": {2: 19.47, 4: 43.01, 8: 106.41},
}
_STATED_BY_AUTHORS = {
    "DiT-B/4": "stated as 68.4; the authors' PyTorch retraining: 68.9 and 68.3",
    "DiT-XL/2": "stated as 19.5; the authors' PyTorch retraining: 18.1; the final weights with "
    "guidance 1.5 on three channels: 2.27 at 256 px (7M steps), 3.04 at 512 px (3M steps)",
}


def _published() -> dict[str, Variant]:
    found = {}
    for size, (width, depth, heads) in _SIZES.items():
        for patch, fid in _FID[size].items():
            name = f"DiT-{size}/{patch}"
            note = _STATED_BY_AUTHORS.get(name, "")
            evidence: FidEvidence = "authors" if note else "summaries"
            found[name] = Variant(name, width, depth, heads, patch, fid, evidence, note)
    return found


VARIANTS: dict[str, Variant] = _published()
"""The twelve, by name."""


def variant(name: str) -> Variant:
    """The published variant called `name`, e.g. "DiT-XL/2". Raises BadRequest if there is none."""
    for known, found in VARIANTS.items():
        if known.lower() == name.lower():
            return found
    near = difflib.get_close_matches(name, VARIANTS, n=1)
    raise BadRequest(
        f"unknown model {foreign(name)!r}",
        expected=", ".join(VARIANTS),
        fix=f"did you mean {near[0]}?" if near else None,
    )


def published_heads(hidden_size: int, depth: int) -> int | None:
    """Heads of the published variant of this width and depth; None if there is none.

    The head count is not in the weights, so this is how it is found for a published checkpoint.
    """
    for width, blocks, heads in _SIZES.values():
        if (width, blocks) == (hidden_size, depth):
            return heads
    return None
