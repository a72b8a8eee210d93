"""Faults that can be planted in a DiT: in the projections of its attention, its inputs or weights.

Nothing of them is in the manifest of a run: it is made before a fault is planted, as by a user who
knows nothing of it. All is drawn from one random generator, so a seed says what is planted.

Shapes: B rows, N tokens, H heads, K head width.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import xarray
from torch import Tensor, nn

from ditscope.analysis.pictures import object_mask
from ditscope.model.dit import DiT
from ditscope.pipeline import load
from ditscope.sampling.draw import sample
from ditscope.sampling.job import Job

Context = contextlib.AbstractContextManager[None]
Change = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Queries, keys and values (B, N, H, K) to others."""


@dataclass(frozen=True)
class Planted:
    """A fault in place: what it is, where it is, and how to put it there. None: everywhere."""

    words: str
    plant: Callable[[DiT, Sequence[float]], Context]  # the model, and the time of each evaluation
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    steps: tuple[int, int] | None = None
    whole: bool = field(default=False)  # no layer, head or step is to be named


@dataclass(frozen=True)
class Fault:
    """A kind of fault, and the rules that name it."""

    name: str
    rules: tuple[str, ...]
    draw: Callable[[np.random.Generator, Job], Planted]


def faults(checkpoints: dict[str, Path]) -> list[Fault]:
    """All kinds of faults; `checkpoints` are weights of the same network, early in training."""
    scales = ("temperature", "collapsed", "diffuse", "saturated")
    kinds = [
        Fault("temperature x0.3", scales, _sharper),
        Fault("temperature x3", scales, _flatter),
        Fault("heads zeroed", ("silent-heads",), _zeroed),
        Fault("heads uniform", ("dead-heads",), _uniform),
        Fault("head copied", ("redundant-heads",), _copied),
        Fault("positions shuffled", ("positions", "out-of-line"), _shuffled),
        Fault("condition dropped", ("branches",), _dropped),
        Fault("block re-initialised", ("out-of-line", "diffuse", "temperature"), _fresh_block),
        Fault("background late", ("lost-object", "background"), _background),
    ]
    for name, path in checkpoints.items():
        kinds.append(Fault(f"{name} checkpoint", ("out-of-line", "positions"), _older(name, path)))
    return kinds


def _sharper(random: np.random.Generator, job: Job) -> Planted:
    return _tempered(random, job, float(random.uniform(0.25, 0.35)))


def _flatter(random: np.random.Generator, job: Job) -> Planted:
    return _tempered(random, job, float(random.uniform(2.5, 3.5)))


def _tempered(random: np.random.Generator, job: Job, factor: float) -> Planted:
    """One or two layers, for the whole run or from some step on."""
    count = len(job.sites)
    layers = random.choice(count, size=int(random.integers(1, 3)), replace=False)
    steps = _from_some_step(random, job)

    def change(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q / factor, k, v

    return _in_attention(f"temperature {factor:.2f}", layers, None, steps, change)


def _zeroed(random: np.random.Generator, job: Job) -> Planted:
    layer, heads = _some_heads(random, job)

    def change(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q, k, _with_heads(v, heads, 0.0)

    return _in_attention("values zero", [layer], heads, _from_some_step(random, job), change)


def _uniform(random: np.random.Generator, job: Job) -> Planted:
    layer, heads = _some_heads(random, job)

    def change(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _with_heads(q, heads, 0.0), k, v

    return _in_attention("queries zero", [layer], heads, _from_some_step(random, job), change)


def _copied(random: np.random.Generator, job: Job) -> Planted:
    """One head of a layer over another, nearly: up to 1 % of noise on its queries."""
    layer = int(random.integers(len(job.sites)))
    source, target = random.choice(job.sites[layer].heads, size=2, replace=False).tolist()
    noise = float(random.uniform(0, 0.01))

    def change(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = [part.clone() for part in (q, k, v)]
        for part in parts:
            part[:, :, target] = part[:, :, source]
        wobble = torch.randn(parts[0][:, :, target].shape, generator=torch.Generator())
        parts[0][:, :, target] *= 1 + noise * wobble.to(q)
        return parts[0], parts[1], parts[2]

    heads = tuple(sorted((source, target)))
    return _in_attention(f"copied, noise {noise:.3f}", [layer], heads, None, change)


def _shuffled(random: np.random.Generator, job: Job) -> Planted:
    """A share of the positions in another order."""
    tokens = job.pipe.model.pos_embed.shape[1]
    share = float(random.uniform(0.5, 1))
    moved = random.choice(tokens, size=int(share * tokens), replace=False)
    order = np.arange(tokens)
    order[np.sort(moved)] = moved

    @contextlib.contextmanager
    def plant(model: DiT, times: Sequence[float]) -> Iterator[None]:
        with _other_weights(model.pos_embed, model.pos_embed[:, torch.from_numpy(order)].clone()):
            yield

    return Planted(f"{share:.0%} of the positions", plant, whole=True)


def _dropped(random: np.random.Generator, job: Job) -> Planted:
    """The condition nearly that of no class, from some step on."""
    share = float(random.uniform(0.9, 1))
    steps = _from_some_step(random, job)

    @contextlib.contextmanager
    def plant(model: DiT, times: Sequence[float]) -> Iterator[None]:
        clock = _Clock(times)
        null = model.config.null_label

        def mixed(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            nothing = model.y_embedder.embedding_table.weight[null]
            return nothing + (1 - share) * (output - nothing) if clock.within(steps) else output

        with _hooked(model.y_embedder, mixed), clock.reading(model):
            yield

    return Planted(f"{share:.0%} dropped", plant, steps=steps)


def _fresh_block(random: np.random.Generator, job: Job) -> Planted:
    """The weights of one block as they are before training."""
    layer, seed = int(random.integers(len(job.sites))), int(random.integers(2**31))

    @contextlib.contextmanager
    def plant(model: DiT, times: Sequence[float]) -> Iterator[None]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fresh = DiT(model.config).blocks[layer].to(model.pos_embed.dtype)
        block = model.blocks[layer]
        kept = copy.deepcopy(block.state_dict())
        block.load_state_dict(fresh.state_dict())
        try:
            yield
        finally:
            block.load_state_dict(kept)

    return Planted("fresh weights", plant, layers=(layer,))


def _older(name: str, path: Path) -> Callable[[np.random.Generator, Job], Planted]:
    """All weights of a checkpoint, which is a folder or a file of weights."""

    def drawn(random: np.random.Generator, job: Job) -> Planted:
        @contextlib.contextmanager
        def plant(model: DiT, times: Sequence[float]) -> Iterator[None]:
            kept = copy.deepcopy(model.state_dict())
            older = load(path) if path.is_dir() else load(job.pipe.source, weights=path)
            model.load_state_dict(older.model.state_dict())
            try:
                yield
            finally:
                model.load_state_dict(kept)

        return Planted(f"{name} weights", plant, whole=True)

    return drawn


def _background(random: np.random.Generator, job: Job) -> Planted:
    """Keys of the background drawn towards the queries in the last steps of the run."""
    times = [each.timestep for each in job.plan.evaluations]
    first = int(random.integers(len(times) * 2 // 3, len(times) - 1))
    strength = float(random.uniform(np.log(3), np.log(10)))
    settings = job.settings.model_copy(update={"qk_steps": (), "metrics": ()})
    grid = job.sites[0].grid
    assert grid is not None

    @contextlib.contextmanager
    def plant(model: DiT, times: Sequence[float]) -> Iterator[None]:
        healthy = sample(job.pipe, list(job.classes), **settings.model_dump(exclude={"edits"}))
        pictures = xarray.DataArray(healthy.images, dims=("sample", "y", "x", "channel"))
        masks = [object_mask(picture, grid).ravel() for picture in pictures]
        background = torch.from_numpy(~np.any(masks, axis=0))

        def change(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return q, k + _towards(q, strength) * background.to(k)[:, None, None], v

        layers = range(len(model.blocks))
        with _in_attention("", layers, None, (first, len(times) - 1), change).plant(model, times):
            yield

    steps = (first, len(times) - 1)
    return Planted(f"background +{strength:.1f} from step {first}", plant, steps=steps)


def _towards(q: Tensor, strength: float) -> Tensor:
    """What to add to keys so that all queries (B, N, H, K) score them higher: (B, 1, H, K).

    Least squares: the vector whose products with the queries are nearest to `strength`.
    """
    queries = q.float().transpose(1, 2)  # (B, H, N, K)
    width = q.shape[-1]
    gram = queries.mT @ queries
    ridge = 1e-3 * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    gram = gram + ridge * torch.eye(width)
    wanted = strength * width**0.5
    found = torch.linalg.solve(gram, queries.sum(-2)[..., None] * wanted)  # (B, H, K, 1)
    return found.squeeze(-1)[:, None].to(q)


def _some_heads(random: np.random.Generator, job: Job) -> tuple[int, tuple[int, ...]]:
    """A layer, and one or two of its heads."""
    layer = int(random.integers(len(job.sites)))
    heads = random.choice(job.sites[layer].heads, size=int(random.integers(1, 3)), replace=False)
    return layer, tuple(sorted(heads.tolist()))


def _from_some_step(random: np.random.Generator, job: Job) -> tuple[int, int]:
    """The whole run, or from a step of its first half on."""
    last = len(job.plan.evaluations) - 1
    first = 0 if random.random() < 0.5 else int(random.integers(1, last // 2 + 1))
    return first, last


def _with_heads(part: Tensor, heads: Sequence[int], value: float) -> Tensor:
    part = part.clone()
    part[:, :, list(heads)] = value
    return part


def _in_attention(
    words: str,
    layers: Sequence[int] | np.ndarray,
    heads: tuple[int, ...] | None,
    steps: tuple[int, int] | None,
    change: Change,
) -> Planted:
    """A change of what the attention of some layers gets."""
    chosen = tuple(sorted(int(layer) for layer in layers))

    @contextlib.contextmanager
    def plant(model: DiT, times: Sequence[float]) -> Iterator[None]:
        clock = _Clock(times)

        def changed(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not clock.within(steps):
                return output
            rows, tokens, width = output.shape
            parts = output.view(rows, tokens, 3, model.config.num_heads, -1).unbind(2)
            return torch.stack(change(*parts), dim=2).view(rows, tokens, width)

        with contextlib.ExitStack() as stack:
            stack.enter_context(clock.reading(model))
            for layer in chosen:
                stack.enter_context(_hooked(model.blocks[layer].attn.qkv, changed))  # type: ignore[union-attr]
            yield

    return Planted(words, plant, chosen, heads, steps)


class _Clock:
    """Which evaluation of a sampling is going on, told by the time the network is given."""

    def __init__(self, times: Sequence[float]) -> None:
        self._times = np.array(times)
        self._now = 0

    @contextlib.contextmanager
    def reading(self, model: DiT) -> Iterator[None]:
        def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._now = int(abs(self._times - float(inputs[1][0])).argmin())

        hook = model.register_forward_pre_hook(read)
        try:
            yield
        finally:
            hook.remove()

    def within(self, steps: tuple[int, int] | None) -> bool:
        return steps is None or steps[0] <= self._now <= steps[1]


@contextlib.contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _other_weights(parameter: nn.Parameter, values: Tensor) -> Iterator[None]:
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(values)
    try:
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(kept)
