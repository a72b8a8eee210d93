"""Where a training computes: what was asked for, or what this machine has.

A device is not part of a training's configuration: its numbers are drawn on the CPU whatever
computes with them, its checkpoints are the same files, and it may go on elsewhere.
"""

from __future__ import annotations

import torch

from ditscope.errors import BadRequest, ResourceError, foreign
from ditscope.pipeline import checked_device

AUTO = "auto"
KINDS = ("cpu", "cuda")
"""What a training runs on: others have no float64 to sum losses in, or no fused optimiser."""


def device_kind(asked: str = AUTO) -> str:
    """`cpu` or `cuda`: that of the device asked for, or with "auto" the best one there is.

    Raises:
        BadRequest: that is no device, or none that can train.
        ResourceError: this machine has none such.
    """
    if asked == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = checked_device(asked).type
    if kind not in KINDS:
        raise BadRequest(
            f"found {foreign(asked)}", field="device", expected=f"{AUTO}, {', '.join(KINDS)}"
        )
    return kind


def one_device(asked: str = AUTO) -> torch.device:
    """The device of a training in one process; of several GPUs the first, unless it is numbered.

    Raises BadRequest, ResourceError as `device_kind`.
    """
    kind = device_kind(asked)
    number = None if asked == AUTO else torch.device(asked).index
    if kind == "cpu":
        return torch.device("cpu")
    if number is not None:
        _check_number(number)
    return torch.device(kind, number or 0)


def shared_kind(asked: str, processes: int) -> str:
    """The kind of device that each of several processes of this machine has one of.

    Raises:
        BadRequest: as `device_kind`, or one device is asked for by its number.
        ResourceError: as `device_kind`, or there are fewer GPUs than processes.
    """
    kind = device_kind(asked)
    if asked != AUTO and torch.device(asked).index is not None:
        raise BadRequest(
            f"found {foreign(asked)}",
            field="device",
            expected="no number: each process has its own",
        )
    if kind == "cuda" and processes > (there := torch.cuda.device_count()):
        raise ResourceError(
            f"{processes} processes asked for, {there} GPUs here",
            field="processes",
            fix=f"--processes {there}, or --device cpu",
        )
    return kind


def _check_number(number: int) -> None:
    there = torch.cuda.device_count()
    if number >= there:
        raise ResourceError(
            f"found cuda:{number}",
            field="device",
            expected=f"cuda:0 to cuda:{there - 1}, the GPUs here",
        )
