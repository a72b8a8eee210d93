"""Weights of a DiT on disk: safetensors under the published names, written whole, read strictly.

Files may hold float32, bfloat16 or float16; the numbers are converted to the dtype of the model
they are loaded into. Everything else is refused: integers, 8-bit floats, and float64, whose range
does not fit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ditscope.core.atomic import check_space, file_sha256, new_file
from ditscope.errors import BadCheckpoint, ResourceError, foreign, listed
from ditscope.model.config import DiTConfig
from ditscope.model.dit import DiT
from ditscope.model.header import Header, read_header

READABLE_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class ModelWeights:
    """A network that is not built yet: its configuration, and tensors by published name.

    `notes` are sentences a person should read (which half of a checkpoint was taken, what a format
    cannot carry).
    """

    config: DiTConfig
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()

    def build(self, *, file: str | os.PathLike[str], allow_nonfinite: bool = False) -> DiT:
        """The network with these weights, in float32 and evaluation mode.

        `file` is named in errors. Raises BadCheckpoint, as `check`.
        """
        model = self._without_memory(file)
        load_into(model, self.state, file, allow_nonfinite=allow_nonfinite)
        return model.eval()

    def check(self, *, file: str | os.PathLike[str], allow_nonfinite: bool = False) -> None:
        """Raise BadCheckpoint unless the tensors are exactly those of the configured network."""
        check_fit(self._without_memory(file), self.state, file, allow_nonfinite=allow_nonfinite)

    def _without_memory(self, file: str | os.PathLike[str]) -> DiT:
        """The network on the `meta` device, refused if its size is nothing like the tensors'."""
        declared = self.config.architecture.parameters
        held = sum(tensor.numel() for tensor in self.state.values())
        if declared > 4 * held:
            raise BadCheckpoint(
                f"holds {held:,} parameters",
                file=file,
                expected=f"{declared:,} by its configuration",
            )
        with torch.device("meta"):
            return DiT(self.config)


def save_weights(
    path: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors to a safetensors file, whole or not at all.

    Args:
        path: The file. Its folder must exist; an old file is replaced at the last moment.
        state: Tensors by name. Those that share memory are written as often as they are named.
        dtype: Convert floating-point tensors to this type; None keeps each as it is.
        metadata: Text to keep beside the tensors.

    Raises:
        ResourceError: the disk is full, or the file cannot be written.
    """
    written, seen = {}, set()
    for name, tensor in state.items():
        kind = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        ready = tensor.detach().to(device="cpu", dtype=kind).contiguous()
        storage = ready.untyped_storage()
        if storage.nbytes() != ready.nbytes or storage.data_ptr() in seen:
            ready = ready.clone()  # the writer refuses views and shared memory
        seen.add(storage.data_ptr())
        written[name] = ready
    check_space(Path(path).parent, sum(tensor.nbytes for tensor in written.values()))
    with new_file(path) as beside:
        beside.touch()
        rights = beside.stat().st_mode  # what the user's umask asks for; the library's are 0600
        try:
            safetensors.torch.save_file(written, beside, {"format": "pt", **(metadata or {})})
            beside.chmod(rights)
        except safetensors.SafetensorError as reason:
            raise ResourceError(f"cannot be written: {foreign(reason)}", file=path) from None


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, as stored. The header is checked first (`read_header`).

    Raises:
        BadCheckpoint: the file is damaged or hostile, or holds a type that is not in
            `READABLE_DTYPES`.
    """
    check_dtypes(read_header(path), path)
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except (safetensors.SafetensorError, OSError) as reason:
        raise BadCheckpoint(f"cannot be read: {foreign(reason)}", file=path) from None


def check_dtypes(header: Header, path: str | os.PathLike[str]) -> None:
    """Raise BadCheckpoint unless every tensor is of a type in `READABLE_DTYPES`."""
    odd = [
        f"{name} ({entry.dtype})"
        for name, entry in header.tensors.items()
        if entry.dtype not in READABLE_DTYPES
    ]
    if odd:
        raise BadCheckpoint(
            f"tensors of a type weights cannot have: {listed(odd)}",
            file=path,
            expected=", ".join(READABLE_DTYPES),
        )


def load_into(
    model: nn.Module,
    state: Mapping[str, Tensor],
    file: str | os.PathLike[str],
    *,
    allow_nonfinite: bool = False,
) -> None:
    """Give a model the weights in `state`, which must fit name by name and shape by shape.

    Numbers are converted to the model's dtype. A model on the `meta` device gets memory of its own.

    Raises:
        BadCheckpoint: as `check_fit`; the model is as before then.
    """
    check_fit(model, state, file, allow_nonfinite=allow_nonfinite)
    own = model.state_dict()
    on_meta = any(tensor.is_meta for tensor in own.values())
    if on_meta:
        state = {name: _copied(state[name], tensor.dtype) for name, tensor in own.items()}
    model.load_state_dict(state, strict=True, assign=on_meta)


def check_fit(
    model: nn.Module,
    state: Mapping[str, Tensor],
    file: str | os.PathLike[str],
    *,
    allow_nonfinite: bool = False,
) -> None:
    """Raise BadCheckpoint unless `state` fits a model; one message tells all that is wrong.

    Names must be the model's, shapes too; numbers must be floating-point, and finite unless
    `allow_nonfinite`.
    """
    wanted = model.state_dict()
    problems = [
        _told("missing", [name for name in wanted if name not in state]),
        _told("unexpected", [name for name in state if name not in wanted]),
    ]
    shared = [(name, tensor, state[name]) for name, tensor in wanted.items() if name in state]
    shapes = [
        f"{name} {tuple(found.shape)} instead of {tuple(own.shape)}"
        for name, own, found in shared
        if own.shape != found.shape
    ]
    odd = [
        f"{name} ({found.dtype})"
        for name, _, found in shared
        if found.dtype not in READABLE_DTYPES.values()
    ]
    problems += [_told("wrong shape", shapes), _told("wrong type", odd)]
    if not allow_nonfinite:
        infinite = [name for name, _, found in shared if not bool(torch.isfinite(found).all())]
        problems.append(_told("NaN or infinite", infinite))
    if any(problems):
        text = "; ".join(problem for problem in problems if problem)
        raise BadCheckpoint(f"does not fit the model: {text}", file=file)


def weights_sha256(source: str | os.PathLike[str] | Mapping[str, Tensor]) -> str:
    """The identity of weights, in hexadecimal.

    Of a file, the SHA-256 of its bytes, which `sha256sum` prints too. Of tensors in memory, the
    SHA-256 over every name, dtype, shape and value in the order of the names.
    """
    if not isinstance(source, Mapping):
        return file_sha256(source)
    digest = hashlib.sha256()
    for name, tensor in sorted(source.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _copied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype, copy=True).contiguous()


def _told(kind: str, names: list[str]) -> str:
    return f"{len(names)} {kind}: {listed(names)}" if names else ""
