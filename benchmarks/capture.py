"""What seeing attention costs: time, memory and disk beside plain sampling, and beside a peer.

Ways: plain; statistics of every head, written to disk; those that 16 queries of each head tell,
with their standard errors; the statistics with Q and K of every fifth step; softmax maps made by
hand and kept in memory, as most scripts do; and attention-map-diffusers, which keeps q and k and
makes the maps of all heads and steps at the end. All but the last sample with our DiT, the peer
with diffusers' of the same size, against its own plain loop. Times are taken in turn in one
process; peaks of memory in a fresh process each.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from benchmarks.paired import paired
from benchmarks.recording import peak_of, pipeline
from ditscope.core.keep import Keep
from ditscope.model.diffusers_format import export_diffusers, load_in_diffusers
from ditscope.model.weights import ModelWeights
from ditscope.sampling.draw import sample

WAYS = ("plain", "statistics", "sampled", "qk", "maps", "peer")
WORDS = {
    "plain": "sampling",
    "statistics": "statistics of every head, to disk",
    "sampled": "sampled queries, 16 of each head, to disk",
    "qk": "statistics, and Q and K of every 5th step",
    "maps": "softmax maps kept in memory",
    "peer plain": "diffusers' DiT, plain",
    "peer": "attention-map-diffusers, all heads and steps",
}
PEER = "attention-map-diffusers==1.0.0"
PEER_FOLDER = Path(__file__).parents[1] / "build" / "peer"
QK_EVERY = 5
SAMPLED_QUERIES = 16


@dataclass(frozen=True)
class Case:
    """One network at one length in one number type."""

    model: str
    tokens: int
    dtype: str
    steps: int

    @property
    def side(self) -> int:
        """Of the latent, in patches of two."""
        return 2 * round(self.tokens**0.5)

    @property
    def name(self) -> str:
        """As it is printed."""
        return f"{self.model}, {self.tokens} tokens, {self.dtype}"

    @property
    def map_bytes(self) -> int:
        """What all maps of a picture with guidance take in the dtype of the network."""
        layers, heads = {"DiT-B/2": (12, 12), "DiT-XL/2": (28, 16)}[self.model]
        size = getattr(torch, self.dtype).itemsize
        return 2 * self.steps * layers * heads * self.tokens**2 * size


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which cases and ways are measured."""
    group = parser.add_argument_group("capture")
    group.add_argument("--models", nargs="+", default=["B/2", "XL/2"], choices=["B/2", "XL/2"])
    group.add_argument("--tokens", nargs="+", type=int, default=[256, 1024], choices=[256, 1024])
    dtypes = ["bfloat16", "float32"]
    group.add_argument("--dtypes", nargs="+", default=dtypes, choices=dtypes)
    group.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    group.add_argument("--steps", type=int, default=5)
    group.add_argument("--no-memory", action="store_true", help="do not start processes for it")


def main(arguments: argparse.Namespace) -> None:
    """Print a table for each case."""
    ways = [way for way in WAYS if way in arguments.ways or way == "plain"]
    for model, tokens, dtype in itertools.product(
        arguments.models, arguments.tokens, arguments.dtypes
    ):
        case = Case(f"DiT-{model}", tokens, dtype, arguments.steps)
        print(f"  {case.name}, {case.steps} steps with guidance")
        able = [way for way in ways if _able(case, way)]
        with tempfile.TemporaryDirectory() as folder:
            _measure(case, able, Path(folder), arguments)


def _measure(case: Case, ways: list[str], folder: Path, arguments: argparse.Namespace) -> None:
    pipe = pipeline(case.side, case.model, case.dtype)
    ours = {WORDS[way]: _run(case, way, pipe, folder) for way in ways if way != "peer"}
    for ratio in paired(ours, arguments.pairs):
        print(f"    {ratio.line()}")
    if "peer" in ways:
        theirs = _theirs(pipe)
        both = ("peer plain", "peer")
        for ratio in paired(
            {WORDS[w]: _run(case, w, theirs, folder) for w in both}, arguments.pairs
        ):
            print(f"    {ratio.line()}")
    for way in ("statistics", "sampled", "qk"):
        if way in ways:
            print(f"    on disk, {WORDS[way]}: {_bytes(folder / way):,} bytes")
    if not arguments.no_memory:
        _print_peaks(case, ways)


def _print_peaks(case: Case, ways: list[str]) -> None:
    peaks = {
        way: peak_of(f"from benchmarks.capture import Case, alone; alone({case!r}, {way!r})")
        for way in (*ways, *(["peer plain"] if "peer" in ways else []))
    }
    for way in ways[1:]:
        extra = peaks[way] - peaks["peer plain" if way == "peer" else "plain"]
        print(f"    extra peak memory, {WORDS[way]}: {extra / 2**20:.0f} MiB")


def alone(case: Case, way: str) -> None:
    """One way once, in a process whose peak is then read."""
    pipe = pipeline(case.side, case.model, case.dtype)
    network = _theirs(pipe) if way.startswith("peer") else pipe
    with tempfile.TemporaryDirectory() as folder:
        _run(case, way, network, Path(folder))()


def _run(case: Case, way: str, network: Any, folder: Path) -> Callable[[], object]:
    """What is timed: one picture with guidance, or as many forwards of the same batch."""
    settings = {"steps": case.steps, "cfg_scale": 4.0}
    if way == "plain":
        return lambda: sample(network, [1], **settings)
    if way == "maps":
        return lambda: _with_maps(lambda: sample(network, [1], **settings))
    if way == "peer plain":
        return lambda: _loop(network, case)
    if way == "peer":
        return lambda: _with_peer(network, case)
    kept = tuple(range(0, case.steps, QK_EVERY)) if way == "qk" else ()
    settings |= {"record": folder / way, "overwrite": True, "qk_steps": kept}
    if way == "sampled":
        settings["only"] = Keep(queries=SAMPLED_QUERIES)
    return lambda: sample(network, [1], **settings)


class _Maps(TorchFunctionMode):
    """Attention by hand, with its map kept: it changes the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = args[:3]
        self.kept.append((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1))
        return self.kept[-1] @ v


def _with_maps(draw: Callable[[], object]) -> None:
    with _Maps() as maps:
        draw()
    assert maps.kept, "no attention was seen"


def _theirs(pipe: Any) -> Any:
    """The same weights in diffusers' network."""
    with tempfile.TemporaryDirectory() as folder:
        export_diffusers(ModelWeights(pipe.model.config, pipe.model.state_dict()), Path(folder))
        return load_in_diffusers(Path(folder)).to(pipe.model.pos_embed.dtype).eval()


@torch.inference_mode()
def _loop(network: Any, case: Case) -> None:
    """As many forwards of a batch of two as a sampling with guidance makes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, case.side, case.side, generator=generator).to(network.dtype)
    for step in range(case.steps):
        timestep = torch.full((2,), 900 - 100 * step // case.steps)
        x = (
            x
            - 0.1
            * network(x, timestep=timestep, class_labels=torch.tensor([1, 1000])).sample[:, :4]
        )


def _with_peer(network: Any, case: Case) -> None:
    capture = _peer().AttentionCapture(
        SimpleNamespace(transformer=network),
        relations=["image->image"],
        timesteps="all",
        heads="all",
        max_capture_bytes=None,
        allow_large_maps=True,
    )
    with capture:
        _loop(network, case)
    assert len(capture.compute()), "it made no map"


def _peer() -> Any:
    """The peer's package, from a folder of its own."""
    if not (PEER_FOLDER / "attention_map_diffusers").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", str(PEER_FOLDER), PEER], check=True)
    if str(PEER_FOLDER) not in sys.path:
        sys.path.append(str(PEER_FOLDER))
    return importlib.import_module("attention_map_diffusers")


def _able(case: Case, way: str) -> bool:
    """Whether all maps fit in memory; the peer makes them in float32."""
    need = {
        "maps": case.map_bytes,
        "peer": case.map_bytes * 4 // getattr(torch, case.dtype).itemsize,
    }
    if need.get(way, 0) * 1.5 < psutil.virtual_memory().available:
        return True
    print(f"    {WORDS[way]}: not measured, its maps take {need[way] / 2**30:.1f} GiB")
    return False


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
