"""python -m tests.train.elsewhere FOLDER: trainings on a second device, where there is none.

A second device without one: tensors that say they are elsewhere and refuse company of the CPU's.

It is PyTorch's own extension point for devices (PrivateUse1), with the numbers of the CPU behind
it. An operation that mixes tensors of both devices fails here as it does on a GPU. It shows where
tensors are, and nothing of how a GPU computes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from ditscope.train.loop import Training
from tests.train.tiny import MODEL, config

NAME = "elsewhere"
CASES: dict[str, dict[str, object]] = {
    "flow": {"precision": "fp32", "coarse_steps": 4, "preview_every": 6, "optimizer": "adamw"},
    "ddpm": {
        "precision": "bf16",
        "accumulate": 2,
        "process": {"kind": "ddpm"},
        "model": {**MODEL, "learn_sigma": True},
    },
}
COPIES = ("aten._to_copy.default", "aten.copy_.default")
"""What may have tensors of both devices."""


class Elsewhere(Tensor):
    """A tensor of the second device, with one of the CPU behind it."""

    behind: Tensor

    @staticmethod
    def __new__(cls, behind: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            behind.shape,
            strides=behind.stride(),
            storage_offset=behind.storage_offset(),
            dtype=behind.dtype,
            device=torch.device(NAME, 0),
        )
        made.behind = behind
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Present(TorchDispatchMode):
    """While entered, tensors may be made on the second device, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do it on the CPU; results are elsewhere where the operands are, or as is asked for."""
    given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    away = [each for each in given if isinstance(each, Elsewhere)]
    asked = kwargs.get("device")
    if away and str(func) not in COPIES:
        strangers = [x for x in given if not isinstance(x, Elsewhere) and x.dim() > 0]
        if strangers:
            raise RuntimeError(f"{func} found tensors on {NAME} and on the CPU")
    if asked is not None:
        kwargs = {**kwargs, "device": "cpu"}
    plain = tree_map(lambda x: x.behind if isinstance(x, Elsewhere) else x, (args, kwargs))
    result = func(*plain[0], **plain[1])
    there = bool(away) if asked is None else torch.device(asked).type == NAME
    if str(func) == "aten.copy_.default":
        return args[0]
    back = {id(each.behind): each for each in away}  # written into: the same tensor again
    return tree_map(lambda x: _placed(x, there, back), result)


def _placed(value: Any, there: bool, back: dict[int, Elsewhere]) -> Any:
    if not there or not isinstance(value, Tensor):
        return value
    return back[id(value)] if id(value) in back else Elsewhere(value)


def register() -> None:
    """Make the device known. There is no way back: call it in a process of its own."""
    _setup_privateuseone_for_python_backend(NAME)
    # `parameter.data = other` would leave the old tensor behind: make new parameters.
    torch.__future__.set_overwrite_module_params_on_conversion(True)


def train(folder: Path, name: str, *, device: str, steps: int = 12) -> None:
    """A training of `CASES`, or the rest of it."""
    settings = config(**CASES[name]).model_copy(update={"steps": steps})
    with Training(settings, folder, device=device) as training:
        training.run(lambda line: None)


def main(base: Path) -> None:
    """Each case here, elsewhere, and elsewhere in two goes; one begins there and ends here."""
    register()
    for name in CASES:
        train(base / name / "here", name, device="cpu")
        with Present():
            train(base / name / "away", name, device=NAME)
            train(base / name / "twice", name, device=NAME, steps=6)
            train(base / name / "twice", name, device=NAME)
    with Present():
        train(base / "back", "flow", device=NAME, steps=6)
    train(base / "back", "flow", device="cpu")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
