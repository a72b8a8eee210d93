"""The manifest of a run: everything needed to read it, to trust it and to replay it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ditscope.core.axes import Branch
from ditscope.core.keep import EVERYTHING, KeepRecord
from ditscope.core.sites import Site

SCHEMA_VERSION = 1

PROBE = "probe"
"""The sampler of a run in which real pictures were looked at and nothing was drawn."""


class Record(BaseModel):
    """Base of all parts of a manifest: immutable, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelRecord(Record):
    """Which network made the run, and how to find it again."""

    name: str
    source: str  # what `ditscope.load` was given: a bundled name, or an absolute path
    weights: str | None = None  # absolute path of other weights that were put into it
    weights_sha256: str
    config: dict[str, object]  # DiTConfig
    process: dict[str, object]  # noise process specification
    codec: dict[str, object]
    dtype: Literal["float32", "bfloat16", "float16"]
    device: str
    parameters: int


class LabelRecord(Record):
    """The class one sample was drawn for."""

    index: int
    name: str


class GuidanceRecord(Record):
    """Classifier-free guidance: `uncond + scale * (cond - uncond)` on the first channels."""

    scale: float
    channels: int | None = None  # None: all; 3 is the published legacy choice
    interval: tuple[float, float] | None = None  # noise levels where it is on; None: everywhere
    null_label: int


class StepRecord(Record):
    """One evaluation of the network. Two-stage solvers have two per solver step."""

    index: int
    solver_step: int
    evaluation: int
    timestep: float  # what the network was told
    noise_level: float  # share of noise in the latent: sigma of a flow, sqrt(1 - alpha_bar) of DDPM
    branches: tuple[Branch, ...]  # branches that were evaluated, in batch order
    scales: tuple[float, ...] | None = None  # softmax scale of each site, where an edit changed one
    proven_queries: tuple[int, ...] = ()  # whose attention was rebuilt and compared with the kernel


class SamplerRecord(Record):
    """How the latent was moved from noise to picture."""

    name: str
    steps: int  # solver steps
    options: dict[str, object] = Field(default_factory=dict)


class MetricRecord(Record):
    """What a stored number means, as it was when it was stored."""

    long_name: str
    unit: str
    formula: str
    source: str


class FileRecord(Record):
    """Size and digest of one file, by its path relative to the run directory."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"\A[0-9a-f]{64}\z")


class RunManifest(Record):
    """`run.json`. `files` holds only what is whole on disk; readers trust nothing else."""

    format: Literal["ditscope-run"] = "ditscope-run"
    schema_version: int = SCHEMA_VERSION
    created: str  # ISO 8601, UTC
    versions: dict[str, str]  # ditscope, python, torch, numpy, ...
    model: ModelRecord
    labels: tuple[LabelRecord, ...]  # one per sample
    seed: int
    sample_seeds: tuple[int, ...]  # one per sample: all noise of that sample comes from it
    batches: tuple[tuple[int, ...], ...]  # which samples went through the network together
    sampler: SamplerRecord
    guidance: GuidanceRecord
    steps: tuple[StepRecord, ...]
    latent_shape: tuple[int, int, int]  # channels, height, width
    mask_shape: tuple[int, int] | None = None  # height, width, where objects are known: a probe
    sites: tuple[Site, ...]
    statistics: tuple[str, ...]  # arrays under stats/: metrics, then standard errors of some
    token_statistics: tuple[str, ...] = ()  # arrays under tokens/
    metrics: dict[str, MetricRecord] = Field(default_factory=dict)  # what they are
    only: KeepRecord = EVERYTHING  # what was measured; elsewhere statistics are NaN
    qk_steps: tuple[int, ...] = ()  # steps whose Q, K and log-sum-exp are stored
    qk_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    scales: tuple[float, ...] = ()  # softmax scale of each site, unless the step has its own
    output_numbers: int = Field(default=0, ge=0, le=1024)  # kept of each output; 0: no digest too
    machine: str = ""  # what decides how its kernels round
    edits: tuple[dict[str, object], ...] = ()  # changes of the attention, in their order
    committed_steps: tuple[int, ...] = ()
    files: dict[str, FileRecord] = Field(default_factory=dict)
    repaired: bool = False  # by `ditscope.runs.repair`: sealed with what was whole
    lost: dict[str, FileRecord] = Field(default_factory=dict)  # what was not whole then
