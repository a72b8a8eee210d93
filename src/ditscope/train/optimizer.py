"""Which optimiser moves which parameter, and its state as plain tensors.

Muon (Jordan et al., 2024; `torch.optim.Muon`, in float32 `muon.py`) orthogonalises the updates of
the blocks' matrices; everything else (embeddings, modulation, biases, the patch layers) is AdamW's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ditscope.train.config import TrainConfig
from ditscope.train.muon import Float32Muon

BLOCK_MATRICES = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")


def optimizers(config: TrainConfig, model: nn.Module) -> dict[str, Optimizer]:
    """The optimisers of a configuration by name; each parameter belongs to exactly one."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = [p for name, p in trained.items() if name.endswith(BLOCK_MATRICES)]
    if config.optimizer == "adamw":
        matrices = []
    owned = {id(p) for p in matrices}
    rest = [p for p in trained.values() if id(p) not in owned]
    made: dict[str, Optimizer] = {
        "adamw": torch.optim.AdamW(
            rest,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.99) if config.optimizer == "muon" else (0.9, 0.999),
            fused=True,
        )
    }
    if matrices:
        muon = torch.optim.Muon if config.precision == "bf16" else Float32Muon
        made["muon"] = muon(
            matrices,
            lr=config.matrix_learning_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
    return made


def set_rate(made: dict[str, Optimizer], config: TrainConfig, step: int) -> None:
    """Give every optimiser its learning rate for `step`."""
    share = config.rate(step)
    bases = {"adamw": config.learning_rate, "muon": config.matrix_learning_rate}
    for name, optimizer in made.items():
        for group in optimizer.param_groups:
            group["lr"] = bases[name] * share


def state_tensors(made: dict[str, Optimizer]) -> dict[str, Tensor]:
    """All optimiser state by name, e.g. `muon.3.momentum_buffer`."""
    return {f"{name}.{index}.{key}": value for name, index, key, value in _entries(made)}


def load_state_tensors(
    made: dict[str, Optimizer],
    tensors: dict[str, Tensor],
    place: Callable[[Tensor, Tensor], Tensor] = lambda tensor, parameter: tensor,
) -> None:
    """Put `state_tensors` of an equal set of optimisers back.

    `place` makes of each tensor what is kept beside its parameter.
    """
    for name, optimizer in made.items():
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for full, value in tensors.items():
            owner, index, key = full.split(".", 2)
            if owner == name:
                placed = place(value, parameters[int(index)])
                state.setdefault(int(index), {})[key] = placed
        current = optimizer.state_dict()
        optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})


def _entries(made: dict[str, Optimizer]) -> Iterator[tuple[str, int, str, Tensor]]:
    for name, optimizer in made.items():
        for index, entry in optimizer.state_dict()["state"].items():
            for key, value in entry.items():
                yield name, index, key, torch.as_tensor(value)
