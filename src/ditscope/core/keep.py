"""What is measured of all there is to see, as a value: `Keep(layers=range(8), queries=16)`.

`watch` and `sample` take one, and the manifest of a run holds it, so that a reader can tell what
was left out from what is missing.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from ditscope.core.axes import Branch
from ditscope.core.places import Indices, Layers, check_places, is_among, several
from ditscope.core.sites import Site
from ditscope.errors import BadRequest, foreign, listed


def _whole(value: Any) -> object:
    if value is None or isinstance(value, bool):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError("Input should be a whole number") from None


_Count = Annotated[int, Field(gt=0, le=2**20)]


class KeepRecord(BaseModel):
    """What is measured, as a manifest holds it. None: all there are; see `Keep`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    layers: Layers = None
    heads: Indices = None
    steps: Indices = None
    branches: Annotated[tuple[Branch, ...] | None, BeforeValidator(several)] = None
    queries: Annotated[_Count | None, BeforeValidator(_whole)] = None

    @field_validator("layers", "heads", "steps", "branches")
    @classmethod
    def _not_empty(cls, value: Sequence[object] | None) -> object:
        if value is not None and not value:
            raise ValueError("selects nothing; None selects all")
        return value

    @field_validator("queries")
    @classmethod
    def _in_pairs(cls, value: int | None) -> int | None:
        if value is not None and value % 2:
            raise ValueError("should be even: two queries of each stratum")
        return value

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return all(value is None for _, value in self)

    def has_step(self, step: int) -> bool:
        """Whether anything is measured at `step`."""
        return self.steps is None or step in self.steps

    def has_branch(self, branch: str) -> bool:
        """Whether anything is measured of `branch`."""
        return self.branches is None or branch in self.branches

    def heads_at(self, site: Site) -> tuple[int, ...]:
        """The heads of `site` that are measured, in order: none, some or all."""
        if not is_among(site, self.layers):
            return ()
        return tuple(range(site.heads)) if self.heads is None else tuple(sorted({*self.heads}))

    def check(
        self,
        sites: Sequence[Site],
        num_steps: int | None = None,
        branches: Sequence[str] | None = None,
    ) -> None:
        """Check that all that is named exists, as far as that is known.

        Args:
            sites: From `census`.
            num_steps: How many steps there are.
            branches: Those that some step evaluates.

        Raises:
            BadRequest: names what does not exist, and what does.
        """
        places = {"layers": self.layers, "heads": self.heads, "steps": self.steps}
        check_places("Keep", sites, num_steps, **places)
        absent = [
            each for each in self.branches or () if branches is not None and each not in branches
        ]
        if absent:
            raise BadRequest(
                f"no step evaluates {listed(absent)}",
                field="Keep.branches",
                expected=listed(branches or ()),
            )

    def facts(self) -> dict[str, object]:
        """What is chosen, by name, without what is not; empty if everything is kept."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self
            if value is not None
        }


class Keep(KeepRecord):
    """Which attention is measured. None: all there is, measured exactly.

    What is left out is not computed and costs nothing. In arrays it is NaN, never zero.

    Args:
        layers: Sites: indices in call order, or globs of their names, as edits take them.
        heads: Indices, of each of those layers.
        steps: Evaluations of a sampling; of a bare model, its forwards in the block of `watch`,
            from 0.
        branches: "cond" or "uncond". Only of a sampling: a bare forward does not say.
        queries: How many queries of a head are looked at, an even number: two of each of as many
            strata as that makes. What is a mean over queries is then estimated without bias, and
            its standard error stands beside it under the name `<metric>_error`. Never fewer than
            two of the image tokens and two of the others. Of a call of no more queries all are
            looked at, and the error is zero.

    Raises:
        BadRequest: an unknown name, the wrong type, a negative or odd number, an empty selection.
    """

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as reason:
            first = reason.errors(include_url=False)[0]
            problem = first["msg"].removeprefix("Value error, ")
            raise BadRequest(
                f"{problem}, found {foreign(repr(first['input']))}",
                field=f"Keep.{first['loc'][0]}",
            ) from None


EVERYTHING = KeepRecord()
