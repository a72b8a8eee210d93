"""What will be drawn, with every choice made: known, and checked, before anything is computed."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from ditscope.attention.census import census
from ditscope.attention.edits.kinds import AnyEdit
from ditscope.attention.metrics.defined import refuse_undefined
from ditscope.attention.metrics.plan import plan_of
from ditscope.attention.metrics.sampling import estimated, refuse_unsampled, sampled_defaults
from ditscope.core.keep import Keep
from ditscope.core.labels import find_class
from ditscope.core.sites import Site
from ditscope.core.standard_error import error_name
from ditscope.core.statistics import DEFAULT_METRICS
from ditscope.diffusion import sampler
from ditscope.diffusion.guidance import branches_at
from ditscope.diffusion.noise import sample_seed
from ditscope.diffusion.schedule import Evaluation, SamplerPlan
from ditscope.errors import BadRequest, foreign, listed
from ditscope.pipeline import Pipeline


class Settings(BaseModel):
    """How to sample. None means the default of the pipeline or of its noise process."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: PositiveInt | str | None = None  # solver steps, or the name of a respacing (DDPM)
    sampler: str | None = None
    cfg_scale: float | None = Field(default=None, ge=0)
    cfg_channels: PositiveInt | None = None  # None: all; 3 is the published legacy choice
    cfg_interval: tuple[float, float] | None = None  # noise levels where guidance is on
    eta: float = Field(default=0.0, ge=0, le=1)  # ddim only
    clip_denoised: bool = False
    seed: NonNegativeInt = 0
    batch_size: PositiveInt = 8  # samples that go through the network together
    metrics: tuple[str, ...] = DEFAULT_METRICS  # of a recorded run
    detail: str = "heads"  # or "tokens": the numbers of single tokens are recorded too
    only: Keep = Keep()  # which attention is measured, and from how many queries
    qk_steps: tuple[NonNegativeInt, ...] = ()  # evaluations whose Q, K and log-sum-exp are stored
    edits: tuple[AnyEdit, ...] = ()  # of the attention, in their order

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """Python would take True for 1, whatever its writer meant by it."""
        parts = value if isinstance(value, list | tuple) else (value,)
        annotation = cls.model_fields[str(info.field_name)].annotation
        if annotation is not bool and any(isinstance(part, bool) for part in parts):
            raise ValueError("True and False are no numbers here")
        return value


@dataclass(frozen=True)
class Job:
    """One sampling: a pipeline, a class per sample, and settings without open choices."""

    pipe: Pipeline
    settings: Settings
    classes: tuple[int, ...]  # one per sample
    plan: SamplerPlan
    cfg_scale: float
    first: int = 0  # index of its first sample in the run that this is a part of

    @property
    def batches(self) -> tuple[tuple[int, ...], ...]:
        """Which samples go through the network together: fixed by index."""
        size, count = self.settings.batch_size, len(self.classes)
        return tuple(tuple(range(i, min(i + size, count))) for i in range(0, count, size))

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The attention calls of one forward of the network, in order."""
        pipe = self.pipe
        x = torch.zeros(1, *pipe.latent_shape, dtype=pipe.model.pos_embed.dtype, device=pipe.device)
        t = torch.zeros(1, device=pipe.device)
        return census(pipe.model, x, t, t.long())

    @property
    def sample_seeds(self) -> tuple[int, ...]:
        """The seed of every sample, a function of the run's seed and the sample's index."""
        indices = range(self.first, self.first + len(self.classes))
        return tuple(sample_seed(self.settings.seed, index) for index in indices)

    def part(self, batch: tuple[int, ...]) -> Job:
        """The job of one of `batches` alone: it draws the same pictures, bit for bit."""
        classes = tuple(self.classes[index] for index in batch)
        return replace(self, classes=classes, first=self.first + batch[0])

    @property
    def statistics(self) -> tuple[str, ...]:
        """What is stored of each head: the metrics, and the standard errors of those estimated."""
        names, only = self.settings.metrics, self.settings.only
        errors = estimated(names) if only.queries is not None else ()
        return (*names, *map(error_name, errors))

    @property
    def measured_sites(self) -> tuple[Site, ...]:
        """The sites at which statistics are taken."""
        return tuple(site for site in self.sites if self.settings.only.heads_at(site))

    def measures(self, evaluation: Evaluation) -> bool:
        """Whether statistics are taken at an evaluation."""
        settings, only = self.settings, self.settings.only
        branches = branches_at(evaluation, self.cfg_scale, settings.cfg_interval)
        some = any(only.has_branch(branch) for branch in branches)
        return bool(settings.metrics) and only.has_step(evaluation.index) and some

    def keeping_qk(self, count: int) -> Job:
        """The job that stores Q and K of `count` evaluations, evenly spread. Raises BadRequest."""
        last = len(self.plan.evaluations) - 1
        if not 0 <= count <= last + 1:
            raise BadRequest(f"found {count}", field="qk-steps", expected=f"0 to {last + 1}")
        kept = {round(index * last / max(1, count - 1)) for index in range(count)}
        settings = self.settings.model_copy(update={"qk_steps": tuple(sorted(kept))})
        return replace(self, settings=settings)


def make_job(pipe: Pipeline, labels: Sequence[str | int], settings: dict[str, object]) -> Job:
    """Check everything that can be checked without computing.

    Raises:
        BadRequest: no label, or an unknown class, setting, sampler or metric, or a value out of
            range; a metric that can have no value in this sampling, or that a sample of queries
            cannot tell; an edit or a `Keep` of a layer, head or step that does not exist.
    """
    chosen = parsed(settings)
    labels = labels if isinstance(labels, str) else list(labels)
    if isinstance(labels, str) or not labels:
        raise BadRequest(
            f"found {foreign(repr(labels))}", field="labels", expected="a list of classes"
        )
    classes = tuple(find_class(label, pipe.labels) for label in labels)
    steps = chosen.steps if chosen.steps is not None else pipe.defaults.steps
    name = chosen.sampler if chosen.sampler is not None else pipe.defaults.sampler
    scale = chosen.cfg_scale if chosen.cfg_scale is not None else pipe.defaults.cfg_scale
    plan = sampler.plan(
        pipe.process, name, steps, eta=chosen.eta, clip_denoised=chosen.clip_denoised
    )
    _check_guidance(pipe, chosen, scale)
    return checked(Job(pipe, chosen, classes, plan, scale))


def checked(job: Job) -> Job:
    """A job whose recording and edits fit the network and the evaluations. Raises BadRequest."""
    evaluations, settings = range(len(job.plan.evaluations)), job.settings
    _check_known("qk_steps", settings.qk_steps, evaluations)
    _check_metrics(job)
    for edit in settings.edits:
        edit.check(job.sites, len(evaluations))
    return job


def parsed(given: dict[str, object]) -> Settings:
    """Settings from what a user gave. Raises BadRequest."""
    chosen = _parsed(given)
    if chosen.only.queries is not None and "metrics" not in given:
        chosen = chosen.model_copy(update={"metrics": sampled_defaults()})
    return chosen


def _parsed(given: dict[str, object]) -> Settings:
    unknown = sorted(given.keys() - Settings.model_fields.keys())
    if unknown:
        near = difflib.get_close_matches(unknown[0], Settings.model_fields, n=1)
        raise BadRequest(
            f"there is no setting {foreign(unknown[0])!r}",
            fix=f"did you mean {near[0]!r}?"
            if near
            else f"settings: {', '.join(Settings.model_fields)}",
        )
    try:
        return Settings.model_validate(given)
    except ValidationError as reason:
        first = reason.errors()[0]
        raise BadRequest(
            f"found {foreign(repr(first['input']))}: {first['msg']}", field=str(first["loc"][0])
        ) from None


def _check_guidance(pipe: Pipeline, settings: Settings, scale: float) -> None:
    channels = settings.cfg_channels
    if channels is not None and channels > pipe.latent_shape[0]:
        raise BadRequest(
            f"found {channels}", field="cfg_channels", expected=f"1 to {pipe.latent_shape[0]}"
        )
    if settings.cfg_interval is not None:
        low, high = settings.cfg_interval
        if not 0 <= low <= high <= 1:
            raise BadRequest(
                f"found {low:g} to {high:g}", field="cfg_interval", expected="0 <= low <= high <= 1"
            )
    if scale != 1 and pipe.model.config.class_dropout_prob == 0:
        raise BadRequest(
            f"guidance {scale:g} needs an unconditional branch, which this network has not",
            field="cfg_scale",
            expected="1",
        )


def _check_metrics(job: Job) -> None:
    """That they are known, and each has a value somewhere in the sampling."""
    settings, evaluations, only = job.settings, job.plan.evaluations, job.settings.only
    asked = plan_of(settings.metrics, settings.detail)
    if only.queries is not None:
        refuse_unsampled(asked)
    compared = [branches_at(each, job.cfg_scale, settings.cfg_interval) for each in evaluations]
    if not only.everything:
        only.check(job.sites, len(evaluations), sorted({*itertools.chain(*compared)}))
        _check_some(job)
    if settings.metrics == DEFAULT_METRICS:
        return  # before a census is taken
    refuse_undefined(settings.metrics, job.measured_sites, sampled=only.queries is not None)
    if asked.branches and not any(len(branches) == 2 for branches in compared):
        raise BadRequest(
            f"{listed(each.name for each in asked.branches)} compares two branches, and no step "
            "evaluates both",
            field="metrics",
            fix="turn guidance on (cfg_scale=4), or leave it out",
        )
    if asked.steps and len(evaluations) < 2:
        raise BadRequest(
            f"{listed(each.name for each in asked.steps)} compares a step with the one before, and "
            "there is one step",
            field="metrics",
            expected="2 steps or more",
        )


def _check_some(job: Job) -> None:
    """That something is measured somewhere."""
    if job.settings.metrics and not any(map(job.measures, job.plan.evaluations)):
        raise BadRequest(
            "none of these steps evaluates one of these branches",
            field="Keep.steps",
            expected="a step and a branch that meet somewhere",
        )


def _check_known(field: str, asked: Sequence[object], known: Sequence[object]) -> None:
    strange = [item for item in asked if item not in known]
    if strange:
        expected = f"0 to {len(known) - 1}" if isinstance(known, range) else listed(known)
        raise BadRequest(f"found {listed(strange)}", field=field, expected=expected)
    if len(set(asked)) < len(asked):
        raise BadRequest("names one twice", field=field)
