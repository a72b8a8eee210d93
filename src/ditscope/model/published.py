"""Published weights: `.pt` files of the original code, read without letting them run anything.

This is the one place where a pickle is opened, and only in a child process of its own:

    python -m ditscope.model.published IN.pt OUT.safetensors [ema|model]

The child reads with `weights_only=True`, where nothing but tensors, plain containers and
`argparse.Namespace` (the arguments in a training checkpoint) can be built, under limits on memory,
time and file size. It writes safetensors and one line of JSON; the parent reads these and nothing
else. Results are kept in the user's cache by the SHA-256 of the `.pt` file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import torch
from torch import Tensor, nn

from ditscope.core import strict_json
from ditscope.core.atomic import check_space, file_sha256
from ditscope.core.cache import cache_folder
from ditscope.errors import BadCheckpoint, BadRequest, DitscopeError, ResourceError, foreign, listed
from ditscope.model.header import is_tensor_name, looks_like_pickle, read_header
from ditscope.model.infer import infer_config, table_note
from ditscope.model.weights import READABLE_DTYPES, ModelWeights, load_weights, save_weights

Part = Literal["ema", "model"]
PARTS: tuple[Part, ...] = ("ema", "model")
"""The two sets of weights in a training checkpoint, in the order of preference."""

PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and `torch.compile` put before every name."""

MEMORY_ALLOWANCE = 1 << 30
SECONDS_ALLOWANCE = 120
SLOWEST_BYTES_PER_SECOND = 10_000_000


@dataclass(frozen=True)
class PickledState:
    """Tensors by name, and the part of the file they are: "ema", "model", or "" for all of it."""

    state: dict[str, Tensor]
    part: str


def load_published(
    path: str | os.PathLike[str], *, num_heads: int | None = None, part: Part | None = None
) -> ModelWeights:
    """Weights in the published naming, from a `.pt` file or a safetensors file.

    Args:
        path: A bare state dict, or a training checkpoint `{"model", "ema", "opt", "args"}`. Its
            first bytes decide how it is read, not its name.
        num_heads: Needed where width and depth are not those of a published variant.
        part: Which half of a training checkpoint; None takes "ema" if there is one.

    Raises:
        BadCheckpoint: the file is damaged, hostile or of another model, or lacks `part`.
        BadRequest: `part` is given for a file that has none.
        ResourceError: no space to write the converted file.
    """
    if is_pickle(path):
        found = read_pickled(path, part=part)
        state, taken = found.state, found.part
    elif part:
        raise BadRequest("has no meaning for a safetensors file", field="part")
    else:
        state, taken = _unwrapped(load_weights(path), path), ""
    config = infer_config(state, num_heads, file=path)
    notes = (f'the "{taken}" weights of the training checkpoint were taken',) if taken else ()
    return ModelWeights(config, state, notes + table_note(config, state))


def is_pickle(path: str | os.PathLike[str]) -> bool:
    """Whether the first bytes of a file are those of a pickle. Raises BadCheckpoint, unreadable."""
    try:
        with Path(path).open("rb") as stream:
            return looks_like_pickle(stream.read(8))
    except OSError as reason:
        raise BadCheckpoint(f"cannot be read: {reason.strerror}", file=path) from None


def read_pickled(path: str | os.PathLike[str], *, part: Part | None = None) -> PickledState:
    """The tensors in a file written by `torch.save`, read in a child process (see the module).

    Raises:
        BadCheckpoint: the file is damaged, holds anything but tensors, or lacks `part`.
        ResourceError: no space to write the converted file.
    """
    try:
        digest = file_sha256(path)
        size = Path(path).stat().st_size
    except OSError as reason:
        raise BadCheckpoint(f"cannot be read: {reason.strerror}", file=path) from None
    with _cache_folder() as folder:
        kept = folder / f"{digest}-{part or 'any'}.safetensors"
        if not kept.exists():
            check_space(folder, size)
            with tempfile.TemporaryDirectory(prefix="converting-", dir=folder) as temporary:
                fresh = Path(temporary) / kept.name
                _convert_in_child(Path(path), fresh, part, size)
                fresh.replace(kept)
        try:
            return PickledState(load_weights(kept), read_header(kept).metadata["part"])
        except (BadCheckpoint, KeyError):
            kept.unlink(missing_ok=True)
            raise BadCheckpoint(
                f"its converted copy {foreign(kept)} was damaged and has been removed",
                file=path,
                fix="try again",
            ) from None


@contextlib.contextmanager
def _cache_folder() -> Iterator[Path]:
    """The user's cache, or a temporary folder where there is none that can be written."""
    if folder := cache_folder("published"):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="ditscope-", ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


def _convert_in_child(source: Path, target: Path, part: Part | None, size: int) -> None:
    """Run the child. Its output is trusted no more than the file."""
    root = str(Path(__file__).parents[2])
    inherited = os.environ.get("PYTHONPATH")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",  # every thread reserves address space, which is limited
        "PYTHONPATH": os.pathsep.join([root, inherited] if inherited else [root]),
    }
    module = "ditscope.model.published"
    command = [sys.executable, "-P", "-m", module, str(source.absolute()), str(target)]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            [*command, part] if part else command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS_ALLOWANCE + size / SLOWEST_BYTES_PER_SECOND,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BadCheckpoint("reading it took too long; given up", file=source) from None
    if done.returncode == 0:
        return
    try:
        answer = strict_json.parse(done.stdout[-10_000:], file=source, error=BadCheckpoint)
    except BadCheckpoint:
        raise BadCheckpoint(
            f"the process that read it ended with status {done.returncode}, as a damaged or "
            "oversized file makes it",
            file=source,
        ) from None
    kind = ResourceError if answer.get("error") == ResourceError.__name__ else BadCheckpoint
    fix = answer.get("fix")
    raise kind(foreign(answer.get("problem"), 2000), file=source, fix=foreign(fix) if fix else None)


# ---- what runs in the child ----


def main(arguments: list[str]) -> int:
    """Convert one file; the answer is the exit status and, on failure, an error as JSON."""
    source, target = Path(arguments[0]), Path(arguments[1])
    _limit(source.stat().st_size)
    try:
        convert(source, target, arguments[2] if arguments[2:] else None)
    except DitscopeError as reason:
        sys.stdout.write(json.dumps(reason.to_dict()))
        return reason.exit_code
    return 0


def convert(source: Path, target: Path, part: str | None) -> None:
    """Write the tensors of a pickled file as safetensors. Has no limits of its own.

    Raises:
        BadCheckpoint: as `read_pickled`.
        ResourceError: `target` cannot be written.
    """
    chosen, taken = _select(_load(source), part, source)
    state = _unwrapped(chosen, source)
    _check_tensors(state, source)
    save_weights(target, state, metadata={"part": taken})


def _load(source: Path) -> object:
    with source.open("rb") as stream:
        is_zip = stream.read(2) == b"PK"
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(source, map_location="cpu", weights_only=True, mmap=is_zip)  # noqa: TID251
    except Exception as reason:  # whatever a hostile file makes of the reader
        _explain(reason, source)


def _explain(reason: Exception, source: Path) -> NoReturn:
    """Our own words: the library's advise to switch its protection off."""
    text = str(reason)
    wanted = re.search(r"GLOBAL ([\w.]+)", text)
    if wanted:
        raise BadCheckpoint(
            f"asks for {foreign(wanted[1])}, which is code and not tensors; refused",
            file=source,
            fix="ask whoever made it for safetensors; nothing of it was run",
        )
    if isinstance(reason, MemoryError) or "allocate" in text:
        raise BadCheckpoint("needs more memory than a file of its size should", file=source)
    raise BadCheckpoint("damaged, cut, or not written by torch.save", file=source)


def _select(tree: object, part: str | None, source: Path) -> tuple[dict[str, Tensor], str]:
    if _is_state(tree) and part is None:
        return dict(tree), ""  # type: ignore[arg-type]
    if not isinstance(tree, Mapping):
        raise BadCheckpoint(f"holds a {type(tree).__name__}, not tensors by name", file=source)
    for candidate in [part] if part else PARTS:
        chosen = tree.get(candidate)
        if _is_state(chosen):
            return dict(chosen), candidate  # type: ignore[arg-type]
    raise BadCheckpoint(
        f"has no weights under {' or '.join([part] if part else PARTS)}; it holds {listed(tree)}",
        file=source,
    )


def _is_state(tree: object) -> bool:
    return (
        isinstance(tree, Mapping)
        and len(tree) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tree.items())
    )


def _unwrapped(state: Mapping[str, Tensor], source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state without the names that wrappers put before the model's."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        own = name
        while own.startswith(PREFIXES):
            own = own.split(".", 1)[1]
        if own in plain:
            raise BadCheckpoint(f"two tensors are called {foreign(own)}", file=source)
        plain[own] = tensor
    return plain


def _check_tensors(state: Mapping[str, Tensor], source: Path) -> None:
    odd = [
        f"{name} ({tensor.dtype}, {tensor.device})"
        for name, tensor in state.items()
        if not is_tensor_name(name)
        or type(tensor) not in (Tensor, nn.Parameter)
        or tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or tensor.dtype not in READABLE_DTYPES.values()
    ]
    if odd:
        raise BadCheckpoint(f"tensors that are not weights: {listed(odd)}", file=source)
    claimed, size = sum(tensor.nbytes for tensor in state.values()), source.stat().st_size
    if claimed > size:  # a view of a few numbers can claim to be any number of them
        raise BadCheckpoint(f"claims {claimed:,} bytes of tensors in {size:,} bytes", file=source)


def _limit(size: int) -> None:
    """Bound memory, time and output of this process by the size of what it reads."""
    try:
        import resource  # POSIX only
    except ImportError:
        return
    seconds = int(SECONDS_ALLOWANCE + size / SLOWEST_BYTES_PER_SECOND)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    most = size + (64 << 20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statistics = Path("/proc/self/statm")
    if statistics.exists():  # Linux; the libraries themselves have mapped gigabytes by now
        mapped = int(statistics.read_text().split()[0]) * resource.getpagesize()
        most = mapped + 3 * size + MEMORY_ALLOWANCE
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
