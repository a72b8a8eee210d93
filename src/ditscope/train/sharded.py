"""Weights, averages and optimiser state spread over processes (FSDP2; `fully_shard`).

Each process keeps a slice of every tensor and gathers a block at a time to compute with it, so a
network may be larger than what one process can hold. Names and values are those of the network in
one process; `whole` gives a tensor back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ditscope.train.worker import Precision, Worker


def shard(network: nn.Module, precision: Precision, kind: str = "cpu") -> None:
    """Leave this process its slice of every parameter; blocks compute in `precision`.

    `kind` is that of the devices the processes compute on, "cpu" or "cuda".
    """
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # timesteps stay float32
    )
    blocks = cast(nn.ModuleList, network.get_submodule("blocks"))
    for module in (*blocks, network):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    for module in network.modules():
        if isinstance(module, FSDPModule):  # losses are shares of one mean: add, do not average
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


class ShardedWorker(Worker):
    """A network that `shard` has spread. It casts its weights itself, so there is no copy."""

    def __init__(self, network: nn.Module, precision: Precision) -> None:
        super().__init__(network, "fp32")
        self.lowered = precision == "bf16"

    @contextlib.contextmanager
    def part(self, *, last: bool) -> Iterator[None]:
        """As `Worker` says."""
        network = cast(FSDPModule, self.network)
        network.set_requires_gradient_sync(last)
        yield

    def follow(self) -> None:
        """Nothing: it computes with the weights that learn."""


def local(tensor: Tensor) -> Tensor:
    """The slice of this process; a whole tensor is its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor that was spread. Every process calls this, in one order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Spread a whole tensor, the same in every process, as a parameter of its shape is."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    there = tensor.to(parameter.device)
    return distribute_tensor(there, parameter.device_mesh, parameter.placements, src_data_rank=None)
