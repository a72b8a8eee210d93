"""What stands where in a run directory. All of it follows from the manifest.

    run.json            the manifest
    images/0000.png     one per sample
    data.zarr/          a Zarr v3 group
      latents           (step, sample, channel, y, x): the exact input of each evaluation
      final             (sample, channel, y, x): what the codec turned into the images
      masks             (sample, y, x): share of each pixel that the object covers, if that is known
      stats/<name>      (step, branch, sample, layer, head), NaN where a branch was not evaluated
      tokens/<name>     (step, branch, sample, layer, head, token), of metrics kept per token
      qk/{q,k}          (step, branch, sample, layer, head, query | key, head_width)
      qk/lse            (step, branch, sample, layer, head, query): natural log
      qk/{values,outputs}  (step, branch, sample, layer, head, key | proven query): see `proof`
      outputs           (step, branch, sample, word): digest and some numbers, see `outputs`
      proof/<error>     (step, branch, sample, layer, head), NaN where nothing was rebuilt
    COMPLETE            written last: the digest of run.json

Chunks are one step deep, in `qk` also one layer, so that no write touches an earlier one; samples
are split where a chunk would grow large, and no chunk is ever padded. The step axis of `qk` counts
the kept steps only. bfloat16 is kept as the bits of uint16. A reader knows every file, shape and
type before it opens any of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ditscope.core.axes import (
    BRANCH,
    BRANCHES,
    CHANNEL,
    HEAD,
    HEAD_WIDTH,
    KEY,
    LAYER,
    PROVEN,
    QUERY,
    SAMPLE,
    STATISTIC_AXES,
    STEP,
    TOKEN,
    WORD,
    Branch,
    X,
    Y,
)
from ditscope.core.manifest import RunManifest
from ditscope.core.standard_error import described
from ditscope.errors import BadRun
from ditscope.runs.arrays import DATA, ITEM_BYTES, ZARR_JSON, ArraySpec
from ditscope.runs.outputs import DIGEST_WORDS
from ditscope.runs.proof import ERRORS

MANIFEST, COMPLETE, IMAGES = "run.json", "COMPLETE", "images"

MAX_MANIFEST_BYTES = 16_000_000
MAX_SEAL_BYTES = 200
MAX_ELEMENTS = 2**33
MAX_CHUNK_BYTES = 64 * 2**20
MAX_FILES = 80_000  # their records fit in a manifest
SHARED_CHUNK_BYTES = 16 * 2**20
"""Samples share a chunk up to this size: few files, and still one layer of one step is one read."""

STORED_TYPE = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}
"""Array type that holds Q and K of each compute type."""


@dataclass(frozen=True)
class Layout:
    """Every array and file that the run of `manifest` consists of."""

    manifest: RunManifest
    branches: tuple[Branch, ...]  # the branch axis: all that are evaluated at some step
    latents: ArraySpec
    final: ArraySpec
    masks: ArraySpec | None
    stats: Mapping[str, ArraySpec]  # by name of the metric
    tokens: Mapping[str, ArraySpec]  # likewise
    qk: Mapping[str, ArraySpec]  # q, k, lse and their witness; empty if none are kept
    proof: Mapping[str, ArraySpec]  # errors of what was rebuilt, by name; empty if nothing was
    outputs: ArraySpec | None  # what is kept of the network's outputs

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """All arrays."""
        metrics = (*self.stats.values(), *self.tokens.values(), *self.proof.values())
        some = (spec for spec in (self.masks, self.outputs) if spec is not None)
        return (self.latents, self.final, *metrics, *self.qk.values(), *some)

    @property
    def group_files(self) -> list[str]:
        """The `zarr.json` of every group."""
        groups = [DATA]
        groups += [f"{DATA}/stats"] if self.stats else []
        groups += [f"{DATA}/tokens"] if self.tokens else []
        groups += [f"{DATA}/qk"] if self.qk else []
        groups += [f"{DATA}/proof"] if self.proof else []
        return [f"{group}/{ZARR_JSON}" for group in groups]

    def step_files(self, step: int) -> list[str]:
        """The chunks of one step."""
        files = list(self.latents.chunk_files(step=step))
        files += self.outputs.chunk_files(step=step) if self.outputs else ()
        for spec in (*self.stats.values(), *self.tokens.values(), *self.proof.values()):
            files += spec.chunk_files(step=step)
        if step in self.manifest.qk_steps:
            for spec in self.qk.values():
                files += spec.chunk_files(step=self.manifest.qk_steps.index(step))
        return files

    @property
    def image_files(self) -> list[str]:
        """One picture per sample."""
        return [f"{IMAGES}/{sample:04d}.png" for sample in range(len(self.manifest.labels))]

    @property
    def end_files(self) -> list[str]:
        """What is written after the last step: final latents, masks and images."""
        masks = self.masks.chunk_files() if self.masks else ()
        return [*self.final.chunk_files(), *masks, *self.image_files]

    @property
    def metadata_files(self) -> list[str]:
        """Every `zarr.json`: they follow from the manifest, so a lost one can be written again."""
        return self.group_files + [spec.metadata_file for spec in self.arrays]

    def files(self, num_steps: int, *, ended: bool) -> list[str]:
        """Every file of a run of which the first `num_steps` steps are written."""
        files = self.metadata_files
        for step in range(num_steps):
            files += self.step_files(step)
        return files + (self.end_files if ended else [])


def seal_of(manifest: bytes) -> bytes:
    """What `COMPLETE` holds for the bytes of `run.json` (`sha256sum -c COMPLETE` checks it)."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def seals(sealed: bytes, manifest: bytes) -> bool:
    """Whether the bytes of `COMPLETE` vouch for those of `run.json`.

    A repair that replaces `run.json` seals the old and the new one while it does, each in a line.
    """
    seal = seal_of(manifest)
    return len(sealed) in (len(seal), 2 * len(seal)) and seal in sealed.splitlines(keepends=True)


def layout_of(manifest: RunManifest) -> Layout:
    """The layout of a manifest that `ditscope.runs.invariants.check` has passed.

    Raises:
        BadRun: an array, a chunk or the number of files is beyond what any reader accepts.
    """
    evaluated = {branch for step in manifest.steps for branch in step.branches}
    branches: tuple[Branch, ...] = tuple(branch for branch in BRANCHES if branch in evaluated)
    steps, samples = {STEP: len(manifest.steps)}, {SAMPLE: len(manifest.labels)}
    image = dict(zip((CHANNEL, Y, X), manifest.latent_shape, strict=True))
    layout = Layout(
        manifest=manifest,
        branches=branches,
        latents=_array("latents", steps | samples | image, "float32"),
        final=_array("final", samples | image, "float32"),
        masks=_masks(manifest),
        stats={name: _metric(name, manifest, len(branches)) for name in manifest.statistics},
        tokens={
            name: _metric(name, manifest, len(branches), tokens=True)
            for name in manifest.token_statistics
        },
        qk=_qk(manifest, len(branches)) if manifest.qk_steps else {},
        proof=_proof(manifest, len(branches)),
        outputs=_outputs(manifest, len(branches)) if manifest.output_numbers else None,
    )
    num_files = sum(spec.num_chunks for spec in layout.arrays) + len(manifest.labels)
    if num_files > MAX_FILES:
        raise BadRun(f"{num_files:,} files in one run", expected=f"at most {MAX_FILES:,}")
    return layout


def _masks(manifest: RunManifest) -> ArraySpec | None:
    if manifest.mask_shape is None:
        return None
    axes = {SAMPLE: len(manifest.labels), **dict(zip((Y, X), manifest.mask_shape, strict=True))}
    about = {"long_name": "share of each pixel that the object covers", "units": "1"}
    return _array("masks", axes, "float32", about)


def _metric(
    name: str, manifest: RunManifest, num_branches: int, *, tokens: bool = False
) -> ArraySpec:
    about = manifest.metrics.get(name) or described(name)  # older runs rely on the names
    attributes = {}
    if about:
        attributes = {
            "long_name": about.long_name,
            "units": about.unit,
            "formula": about.formula,
            "source": about.source,
        }
    axes = _head_axes(manifest, num_branches)
    if not tokens:
        return _array(f"stats/{name}", axes, "float32", attributes)
    axes[TOKEN] = max(max(site.queries, site.keys) for site in manifest.sites)
    return _array(f"tokens/{name}", axes, "float32", attributes)


def _proof(manifest: RunManifest, num_branches: int) -> dict[str, ArraySpec]:
    if not any(step.proven_queries for step in manifest.steps):
        return {}
    axes = _head_axes(manifest, num_branches)
    return {
        name: _array(f"proof/{name}", axes, "float32", {"long_name": about, "units": "1"})
        for name, about in ERRORS.items()
    }


def _outputs(manifest: RunManifest, num_branches: int) -> ArraySpec:
    axes = {
        STEP: len(manifest.steps),
        BRANCH: num_branches,
        SAMPLE: len(manifest.labels),
        WORD: DIGEST_WORDS + 2 * manifest.output_numbers,
    }
    about = {"long_name": "SHA-256 (8 words) and float32 numbers of the network's output"}
    return _array("outputs", axes, "uint16", about)


def _head_axes(manifest: RunManifest, num_branches: int) -> dict[str, int]:
    sizes = (
        len(manifest.steps),
        num_branches,
        len(manifest.labels),
        len(manifest.sites),
        max(site.heads for site in manifest.sites),
    )
    return dict(zip(STATISTIC_AXES, sizes, strict=True))


def _qk(manifest: RunManifest, num_branches: int) -> dict[str, ArraySpec]:
    site, compute = manifest.sites[0], manifest.qk_dtype or "float32"
    common = {
        STEP: len(manifest.qk_steps),
        BRANCH: num_branches,
        SAMPLE: len(manifest.labels),
        LAYER: len(manifest.sites),
        HEAD: site.heads,
    }
    query, key, width = {QUERY: site.queries}, {KEY: site.keys}, {HEAD_WIDTH: site.head_width}
    kept = {"steps": list(manifest.qk_steps), "numbers": compute}
    stored, steps = STORED_TYPE[compute], {"steps": kept["steps"]}
    # A batch is written when the network has seen it, so no chunk may hold samples of two.
    together = math.gcd(len(manifest.labels), *(batch[0] for batch in manifest.batches))
    found = {
        "q": _array("qk/q", common | query | width, stored, kept, together=together),
        "k": _array("qk/k", common | key | width, stored, kept, together=together),
        "lse": _array("qk/lse", common | query, "float32", steps, together=together),
    }
    proven = {len(manifest.steps[step].proven_queries) for step in manifest.qk_steps}
    if proven != {0}:
        outputs = common | {PROVEN: max(proven)}
        found["values"] = _array("qk/values", common | key, "float32", steps, together=together)
        found["outputs"] = _array("qk/outputs", outputs, "float32", steps, together=together)
    return found


def _array(
    name: str,
    axes: Mapping[str, int],
    dtype: str,
    attributes: Mapping[str, object] | None = None,
    *,
    together: int | None = None,
) -> ArraySpec:
    """An array whose chunks hold samples of one group of `together` (None: all) samples."""
    elements = math.prod(axes.values())
    if elements > MAX_ELEMENTS:
        raise BadRun(f"{elements:,} numbers", field=name, expected=f"at most {MAX_ELEMENTS:,}")
    one_deep = {STEP, LAYER} if name.startswith("qk/") else {STEP}
    chunks = {axis: 1 if axis in one_deep else size for axis, size in axes.items()}
    row = math.prod(chunks.values()) // chunks[SAMPLE] * ITEM_BYTES[dtype]
    if row > MAX_CHUNK_BYTES:
        raise BadRun(
            f"{row / 2**20:,.0f} MiB for one sample of one step",
            field=name,
            expected=f"at most {MAX_CHUNK_BYTES // 2**20} MiB",
        )
    chunks[SAMPLE] = _largest_divisor(together or axes[SAMPLE], max(1, SHARED_CHUNK_BYTES // row))
    return ArraySpec(
        name, tuple(axes), tuple(axes.values()), tuple(chunks.values()), dtype, attributes or {}
    )


def _largest_divisor(number: int, limit: int) -> int:
    return max(d for d in range(1, min(number, limit) + 1) if number % d == 0)
