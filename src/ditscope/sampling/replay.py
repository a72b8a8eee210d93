"""Running one recorded step again, to see attention that was not stored.

A step is repeated on its stored latent, under the edits of the run, with the very batch it was
recorded in, since another batch size may take another kernel and round differently. The weights
must be those of the run, and the network's output is held against what the run keeps of it.

Shapes: B rows of one batch, H heads, N tokens, K head width.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ditscope.attention.capture import Capture, OnAttention, Seen
from ditscope.attention.edits.forward import EditedForward
from ditscope.attention.edits.kinds import AnyEdit, edits_of
from ditscope.core.axes import Branch
from ditscope.core.manifest import ModelRecord
from ditscope.diffusion.guidance import guide
from ditscope.diffusion.schedule import Evaluation
from ditscope.errors import BadCheckpoint, BadRequest, BadRun
from ditscope.model.config import DiTConfig
from ditscope.pipeline import DTYPES, DType, Pipeline, load
from ditscope.runs.attention_rows import Operands
from ditscope.runs.layout import MANIFEST
from ditscope.runs.operands import Place
from ditscope.runs.outputs import Agreement, agreement, worst
from ditscope.runs.reader import Run
from ditscope.sampling.kept_call import HostCopy
from ditscope.sampling.machine import machine_of

KEPT_BYTES = 512 * 2**20
"""What replayed forwards take in memory at most, or the last one: looking at many layers and
samples of a step costs one forward also where a run has no cache on disk."""

_forwards: OrderedDict[tuple[str, int, int], Mapping[Place, Operands]] = OrderedDict()
"""By digest of the run, step and first sample."""

_lock = threading.Lock()


def replay_step(run: Run, step: int, sample: int) -> Mapping[Place, Operands]:
    """What the attention calls of one sample at one step computed with, from running it again.

    Other samples of its batch come with it, where all of them fit in `KEPT_BYTES`.

    Raises:
        BadCheckpoint: the model is gone, or its weights are not those of the run.
        BadRun: the run was edited in a way that is unknown here or does not fit its sites, or the
            network's output is not the recorded one, by more than rounding.
    """
    batch = next(batch for batch in run.manifest.batches if sample in batch)
    samples = batch if _nbytes(run, step) * len(batch) <= KEPT_BYTES else (sample,)
    place = (run.digest, step, samples[0])
    with _lock:
        if place not in _forwards:
            _forwards[place] = _operands(run, step, batch, samples)
            while len(_forwards) > 1 and _kept_bytes() > KEPT_BYTES:
                _forwards.popitem(last=False)
        _forwards.move_to_end(place)
        return _forwards[place]


def _nbytes(run: Run, step: int) -> int:
    """What one sample of a replayed forward takes; Q and K counted as float32."""
    sites, branches = run.manifest.sites, len(run.manifest.steps[step].branches)
    numbers = sum(
        site.heads * ((site.queries + site.keys) * site.head_width + site.queries) for site in sites
    )
    return 4 * branches * numbers


def _kept_bytes() -> int:
    return sum(each.nbytes for forward in _forwards.values() for each in forward.values())


def _operands(
    run: Run, step: int, batch: tuple[int, ...], samples: tuple[int, ...]
) -> dict[Place, Operands]:
    """Repeat the forward of `batch`; the operands of the rows of `samples`."""
    branches = run.manifest.steps[step].branches
    rows: dict[tuple[Branch, int], int] = {
        (branch, sample): half * len(batch) + batch.index(sample)
        for half, branch in enumerate(branches)
        for sample in samples
    }
    kept: dict[tuple[Branch, int, int], tuple[list[HostCopy], float, DType]] = {}

    def keep(seen: Seen) -> None:
        q, k = seen.operands.q, seen.operands.k
        for (branch, sample), row in rows.items():
            parts = [HostCopy(part[row]) for part in (q, k, seen.lse)]
            kept[branch, sample, seen.site.index] = (parts, seen.operands.scale, DTYPES[q.dtype])

    output, _ = repeat(run, step, batch, keep)
    agreements = agreements_of(run, step, batch, output)
    least = worst(agreements.values())
    if least and not least.within_rounding(run.manifest.model.dtype):
        raise BadRun(
            f"step {step} is not what was recorded: the network's output is {least}, which is no "
            "rounding",
            file=run.path,
            fix="record the run again with this version",
        )
    return {
        (step, branch, sample, layer): Operands(
            *(part.numpy() for part in parts),
            scale=scale,
            source="replayed",
            numbers=numbers,
            agreement=agreements.get((branch, sample)),
        )
        for (branch, sample, layer), (parts, scale, numbers) in kept.items()
    }


@torch.inference_mode()
def repeat(
    run: Run, step: int, batch: tuple[int, ...], on_attention: OnAttention | None = None
) -> tuple[Tensor, Tensor]:
    """Repeat the forward of `batch` at `step`: the network's output, and what guidance makes of it.

    Raises as `replay_step`.
    """
    manifest, record, edits = run.manifest, run.manifest.steps[step], _edits(run)
    pipe = pipeline_of(run)
    outputs: list[Tensor] = []

    def network(
        x: Tensor,
        timestep: float,
        labels: Tensor,
        evaluation: Evaluation,
        branches: tuple[Branch, ...],
    ) -> Tensor:
        watching = Capture(manifest.sites, (), on_attention=on_attention)
        with watching, EditedForward(edits, manifest.sites, step):
            outputs.append(pipe.network(x, timestep, labels))
        return outputs[-1]

    denoise = guide(
        network,
        torch.tensor([manifest.labels[index].index for index in batch], device=pipe.device),
        manifest.guidance.null_label,
        manifest.guidance.scale,
        channels=manifest.guidance.channels,
        interval=manifest.guidance.interval,
    )
    latent = torch.from_numpy(run.latents.isel(step=step, sample=list(batch)).values)
    evaluation = Evaluation(
        record.index, record.solver_step, record.evaluation, record.timestep, record.noise_level
    )
    guided = denoise(latent.to(pipe.device), evaluation)
    if len(outputs[0]) != len(batch) * len(record.branches):
        raise BadRun("are not what its guidance evaluates", file=run.path, field="branches")
    return outputs[0], guided


def agreements_of(
    run: Run, step: int, batch: tuple[int, ...], output: Tensor
) -> dict[tuple[Branch, int], Agreement]:
    """How `output` compares with the recorded one, by branch and sample; empty if none was kept."""
    spec, found = run.layout.outputs, output.cpu().numpy()
    if spec is None or run.files.lost.intersection(spec.chunk_files(step=step)):
        return {}
    kept = run.files.block(spec, step=step)  # (branch, sample, word)
    here = elsewhere(run)
    return {
        (branch, sample): agreement(
            kept[run.layout.branches.index(branch), sample], found[half * len(batch) + row], here
        )
        for half, branch in enumerate(run.manifest.steps[step].branches)
        for row, sample in enumerate(batch)
    }


def elsewhere(run: Run) -> str:
    """Where `run` was recorded and where it is replayed; "" if these round alike."""
    there, here = run.manifest.machine, machine_of(pipeline_of(run).device)
    return "" if there == here else f"recorded on {there or 'an unknown machine'}, now on {here}"


def _edits(run: Run) -> tuple[AnyEdit, ...]:
    """What was done to the attention of the run. Raises BadRun."""
    file = run.path / MANIFEST
    edits = edits_of(run.manifest.edits, file=file)
    for index, edit in enumerate(edits):
        try:
            edit.check(run.manifest.sites, len(run.manifest.steps))
        except BadRequest as reason:
            raise BadRun(
                reason.problem, file=file, field=f"edits.{index}", expected=reason.expected
            ) from None
    return edits


def pipeline_of(run: Run) -> Pipeline:
    """The pipeline of `run`, with its weights compared. Raises BadCheckpoint."""
    return _pipeline(run.manifest.model)


def _pipeline(model: ModelRecord) -> Pipeline:
    is_file = Path(model.source).is_file()  # a folder says its number of heads, a file cannot
    num_heads = DiTConfig.model_validate_json(json.dumps(model.config)).num_heads
    place = (model.source, model.weights, num_heads if is_file else None, model.dtype, model.device)
    return _loaded(*place, model.weights_sha256)


@lru_cache(maxsize=1)
def _loaded(
    source: str,
    weights: str | None,
    num_heads: int | None,
    dtype: DType,
    device: str,
    weights_sha256: str,
) -> Pipeline:
    """The pipeline of a run, its weights compared once: hashing them takes as long as a forward."""
    pipe = load(source, weights=weights, num_heads=num_heads, dtype=dtype, device=device)
    if pipe.weights_sha256 != weights_sha256:
        raise BadCheckpoint(
            "its weights are not those the run was computed with",
            file=source,
            field="weights_sha256",
            fix="put the original weights back, or record the run again; weights that were changed "
            "in memory, also by two conversions, are in no file",
        )
    return pipe
