"""What a DiT is made of. Field names are those of the published constructor."""

from __future__ import annotations

import difflib
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from ditscope.core.variants import Architecture
from ditscope.errors import BadConfig


class DiTConfig(BaseModel):
    """Sizes and conventions of one Diffusion Transformer (Peebles and Xie, arXiv:2212.09748).

    The last two fields name the conventions in which weights in circulation differ: diffusers'
    `DiTTransformer2DModel` has `frequency_shift=1` and, by default, `mlp_norm_eps=1e-5`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    input_size: PositiveInt | tuple[PositiveInt, PositiveInt] = (
        32  # latent side, or (height, width)
    )
    patch_size: PositiveInt = 2
    in_channels: PositiveInt = 4
    hidden_size: PositiveInt = 1152
    depth: PositiveInt = 28
    num_heads: PositiveInt = 16
    mlp_ratio: float = Field(default=4.0, gt=0)
    class_dropout_prob: float = Field(default=0.1, ge=0, le=1)
    num_classes: PositiveInt = 1000
    learn_sigma: bool = True
    frequency_shift: Literal[0, 1] = 0  # timestep sinusoid: divide by (half - shift)
    mlp_norm_eps: float = Field(default=1e-6, gt=0)  # epsilon of the second norm of each block

    def __init__(self, **fields: object) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                near = difflib.get_close_matches(name, type(self).model_fields, n=1)
                fix = f"did you mean {near[0]}?" if near else None
                raise BadConfig("unknown field", field=name, fix=fix) from None
            problem = first["msg"].removeprefix("Value error, ")
            raise BadConfig(problem, field=name or None) from None

    @field_validator("input_size", mode="before")
    @classmethod
    def _json_has_no_tuples(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _sizes_fit(self) -> DiTConfig:
        height, width = self.input_height, self.input_width
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide input_size {height} x {width}"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads {self.num_heads} does not divide hidden_size {self.hidden_size}"
            )
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 4 (positions)")
        return self

    @property
    def input_height(self) -> int:
        """Rows of the latent."""
        return self.input_size if isinstance(self.input_size, int) else self.input_size[0]

    @property
    def input_width(self) -> int:
        """Columns of the latent."""
        return self.input_size if isinstance(self.input_size, int) else self.input_size[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the token grid."""
        return self.input_height // self.patch_size, self.input_width // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Number of tokens, all of them image patches."""
        return self.grid[0] * self.grid[1]

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def out_channels(self) -> int:
        """Channels of the output: twice the input's with learned variance."""
        return self.in_channels * 2 if self.learn_sigma else self.in_channels

    @property
    def architecture(self) -> Architecture:
        """The sizes that parameters and multiply-adds follow from."""
        return Architecture(
            hidden_size=self.hidden_size,
            depth=self.depth,
            patch_size=self.patch_size,
            tokens=self.num_tokens,
            mlp_width=int(self.hidden_size * self.mlp_ratio),
            label_rows=self.num_classes + (self.class_dropout_prob > 0),
            in_channels=self.in_channels,
            out_channels=self.out_channels,
        )

    @property
    def null_label(self) -> int:
        """Label of the unconditional branch."""
        return self.num_classes
