"""The census: every attention call of one forward, in order, with its module and its shapes.

The forward runs on fake tensors, which have shapes and no numbers, so it costs no memory and a
fraction of a second, whatever the size of the model. Afterwards a call is known by its order.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.utils._pytree import tree_map_only

from ditscope.attention.grids import GridRule, known, supplied
from ditscope.attention.operands import operands
from ditscope.attention.seam import AttentionCall, Seam
from ditscope.core.sites import Site, TokenGrid
from ditscope.errors import BadRequest, NothingWatched, listed

NEEDS_NUMBERS = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
_one_at_a_time = threading.Lock()  # two censuses would put back each other's hooks
ATTENTION_LIKE = re.compile("attention|attn", re.IGNORECASE)


@dataclass(frozen=True)
class Census:
    """What one forward of a model attends with."""

    sites: tuple[Site, ...]
    not_seen: Mapping[str, str]  # modules that are attention by their type, which is told with
    #                              their path, and ran, but made no call we see
    fused: tuple[nn.MultiheadAttention, ...]  # that ran, and may have a kernel without a seam


def census(
    model: nn.Module,
    *args: Any,
    grid: TokenGrid | Mapping[str, TokenGrid] | None = None,
    **kwargs: Any,
) -> tuple[Site, ...]:
    """The attention calls of `model(*args, **kwargs)` in order; nothing is computed or changed.

    Args:
        model: Any module.
        args: What its forward is called with.
        grid: The grid of image tokens, for every self-attention or per glob of site names. By
            default it is known for the model, or None.
        kwargs: As args.

    Raises:
        NothingWatched: the forward makes no attention call that can be seen, or it cannot run on
            fake tensors, or it would take a fused path that watching would turn off.
        BadRequest: the grid that was given fits no site.
    """
    return take_census(model, args, kwargs, grid).sites


def take_census(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    grid: TokenGrid | Mapping[str, TokenGrid] | None = None,
) -> Census:
    """As `census`, with what was not seen."""
    network = model._orig_mod if isinstance(model, OptimizedModule) else model
    assert isinstance(network, nn.Module)
    calls, ran = _fake_forward(network, args, kwargs)
    rules = known(network, args, kwargs) if grid is None else supplied(grid)
    names = _distinct([name or type(network).__name__ for name, _ in calls])
    sites = tuple(
        _site(index, name, call, rules)
        for index, (name, (_, call)) in enumerate(zip(names, calls, strict=True))
    )
    fused = tuple(m for m in ran.values() if isinstance(m, nn.MultiheadAttention))
    refuse_fused(fused)
    _refuse_compiled(model, [name for name, _ in calls], fused)
    not_seen = _not_seen(network, ran, [name for name, _ in calls])
    if not sites:
        kinds = sorted(set(not_seen.values()))
        looks = f"; these look like attention: {listed(kinds)}" if kinds else ""
        raise NothingWatched(
            f"{type(network).__name__} makes no call of scaled_dot_product_attention{looks}",
            fix="use an implementation of its attention that calls "
            "torch.nn.functional.scaled_dot_product_attention",
        )
    if grid is not None and not any(site.grid for site in sites):
        shapes = Counter(f"{site.queries} x {site.keys}" for site in sites)
        raise BadRequest(
            "it fits no self-attention of the model, whose queries x keys are " + listed(shapes),
            field="grid",
        )
    return Census(sites, not_seen, fused)


def refuse_fused(modules: tuple[nn.MultiheadAttention, ...]) -> None:
    """Refuse to watch what would leave a fused path for it: the watched bits would differ.

    In evaluation without gradients `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` run as
    one operator, unless a function mode is on.
    """
    found = [module for module in modules if _may_be_fused(module)]
    if found:
        raise NothingWatched(
            f"{len(found)} nn.MultiheadAttention would run in torch's fused path, which hides its "
            "attention and computes other bits than the path that can be seen",
            fix="call torch.backends.mha.set_fastpath_enabled(False) before the runs you compare",
        )


def warn_of_unseen(census: Census, verb: str) -> None:
    """Say once by name what a watch or an edit does not reach. `verb`: "watched", "edited"."""
    if census.not_seen:
        found = [f"{name} ({kind})" for name, kind in census.not_seen.items()]
        warnings.warn(
            f"not {verb}, since it is attention by its type but makes no call of "
            f"scaled_dot_product_attention: {listed(found)}",
            RuntimeWarning,
            stacklevel=2,
        )


def _refuse_compiled(
    model: nn.Module, attending: Sequence[str], composites: Sequence[nn.MultiheadAttention]
) -> None:
    """Refuse what Dynamo cannot compile with a seam in it; a whole network it can.

    A block that is compiled by itself would be compiled anew for each place it has in the order
    of calls, until Dynamo gives up and lets it run uncompiled, with other bits.
    """
    parts = [name for name, module in _submodules(model) if _is_compiled(module)]
    found = [name for name in parts if any(f"{site}.".startswith(f"{name}.") for site in attending)]
    whole = "compile the whole network, compiled = torch.compile(model), and call that; or none"
    if found:
        raise NothingWatched(
            f"{listed(found)} is compiled by itself, with its attention", fix=whole
        )
    if composites and _is_compiled(model):
        raise NothingWatched(
            f"{len(composites)} nn.MultiheadAttention in a compiled network hide their attention",
            fix="call the network uncompiled, and compare with uncompiled runs",
        )


def _is_compiled(module: nn.Module) -> bool:
    return isinstance(module, OptimizedModule) or module._compiled_call_impl is not None


def _may_be_fused(module: nn.MultiheadAttention) -> bool:
    """The conditions of torch's fused path that do not depend on the input."""
    learns = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
    return (
        torch.backends.mha.get_fastpath_enabled()
        and not torch.is_autocast_enabled()
        and not (module.training or learns)
        and module.batch_first
        and module._qkv_same_embed_dim
        and module.num_heads % 2 == 0
        and module.bias_k is None
        and not module.add_zero_attn
    )


def _fake_forward(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[tuple[str, AttentionCall]], dict[str, nn.Module]]:
    """The calls with the path of the innermost module that made each; and all modules that ran."""
    calls: list[tuple[str, AttentionCall]] = []
    running: list[str] = []
    ran: dict[str, nn.Module] = {"": model}
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    as_fake = lambda tensor: fake.from_tensor(tensor.detach())
    fake_args, fake_kwargs = tree_map_only(Tensor, as_fake, (args, dict(kwargs)))

    def observe(call: AttentionCall, output: Tensor) -> None:
        calls.append((running[-1] if running else "", call))

    with _one_at_a_time, _unchanged(model, fake), _named(model, running, ran), torch.no_grad():
        try:
            with fake, _own_casts(), Seam(observe):
                model.forward(*fake_args, **fake_kwargs)
        except NEEDS_NUMBERS as error:
            raise NothingWatched(
                f"the forward of {type(model).__name__} depends on numbers, so that its attention "
                f"cannot be listed beforehand ({type(error).__name__}: {error})",
                fix="keep .item(), bool(tensor) and boolean indexing out of the forward",
            ) from error
    return calls, ran


@contextmanager
def _own_casts() -> Iterator[None]:
    """Keep the weights that autocast casts here, fake ones, out of what it remembers of them."""
    remembers = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(remembers)


@contextmanager
def _named(model: nn.Module, running: list[str], ran: dict[str, nn.Module]) -> Iterator[None]:
    """Keep in `running` the paths of the submodules whose forward is under way, outermost first.

    Another thread may run the model meanwhile; it is not meant.
    """
    handles = []
    thread = threading.get_ident()

    def enter(name: str, module: nn.Module) -> None:
        if threading.get_ident() == thread:
            running.append(name)
            ran[name] = module

    def leave(*_: object) -> None:
        if threading.get_ident() == thread:
            running.pop()

    for name, module in _submodules(model):
        before = lambda module, _, name=name: enter(name, module)
        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _unchanged(model: nn.Module, fake: FakeTensorMode) -> Iterator[None]:
    """Leave hooks of others and compilation out, and put back what the forward keeps on modules.

    A hook that copies what it sees to numpy would fail on fake tensors, and a model that caches a
    tensor during its forward would be left with a fake one. The tensors that it might write to are
    fake ones from the start.
    """
    before = [
        (store, dict(store))
        for module in model.modules()
        for store in (module.__dict__, module._buffers)
    ]
    for store, was in before:
        tensors = {name: value for name, value in was.items() if isinstance(value, Tensor)}
        store.update({name: fake.from_tensor(t.detach()) for name, t in tensors.items()})
    for _, module in _submodules(model):  # the model's own do not run: its forward is called
        module.__dict__["_forward_hooks"] = OrderedDict()
        module.__dict__["_forward_pre_hooks"] = OrderedDict()
        if module._compiled_call_impl is not None:
            module.__dict__["_compiled_call_impl"] = None
        if isinstance(module, OptimizedModule):
            module.__dict__["forward"] = module._orig_mod
    try:
        yield
    finally:
        for store, was in before:
            for name in store.keys() - was.keys():
                del store[name]
            store.update(was)


def _submodules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if module is not model]


def _distinct(names: list[str]) -> list[str]:
    """Number the calls of modules that make several."""
    total, so_far = Counter(names), Counter[str]()
    distinct = []
    for name in names:
        distinct.append(f"{name}[{so_far[name]}]" if total[name] > 1 else name)
        so_far[name] += 1
    return distinct


def _site(index: int, name: str, call: AttentionCall, rules: tuple[GridRule, ...]) -> Site:
    attention = operands(call)
    q, queries, keys = attention.q, attention.q.shape[-2], attention.k.shape[-2]
    rule = next((rule for rule in rules if rule.fits(name, queries, keys)), None)
    return Site(
        index=index,
        name=name,
        heads=q.shape[1],
        queries=queries,
        keys=keys,
        head_width=q.shape[-1],
        grid=rule.grid if rule else None,
        segments=rule.segments(keys) if rule else (),
    )


def _not_seen(model: nn.Module, ran: Iterable[str], seen: list[str]) -> dict[str, str]:
    """Innermost modules that are attention by their type, took part, and have no site in them."""
    parts = {name[:end] for name in ran for end in _ends(name)}
    silent = {
        name: module
        for name, module in model.named_modules()
        if ATTENTION_LIKE.search(type(module).__name__)
        and name in parts
        and not any(site == name or site.startswith(f"{name}.") for site in seen)
        and not any(name.startswith(f"{site}.") for site in seen if site)
    }
    return {
        name or type(module).__name__: _kind(module)
        for name, module in silent.items()
        if not any(other.startswith(f"{name}.") for other in silent)
    }


def _ends(name: str) -> list[int]:
    """Where the paths of a module and of all that it lies in end, in its path."""
    return [*(index for index, letter in enumerate(name) if letter == "."), len(name)]


def _kind(module: nn.Module) -> str:
    """Its type, and that of the function object to which a module of diffusers leaves the work."""
    processor = getattr(module, "processor", None)
    kind = type(module).__name__
    return kind if processor is None else f"{kind} with {type(processor).__name__}"
