"""What decides how the kernels of a machine round: numbers of two that differ in it may differ."""

from __future__ import annotations

import platform

import torch


def machine_of(device: torch.device) -> str:
    """The kind of machine: torch, and the GPU or the instructions and threads of the CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    if device.type != "cpu":
        kind = f"{device.type}, {kind}"
    many = "thread" if threads == 1 else "threads"
    return f"{kind}, {threads} {many}, torch {torch.__version__}"
