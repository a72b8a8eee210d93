"""An ONNX file as a network on the CPU. onnxruntime is an extra: `pip install ditscope[onnx]`.

Shapes: B rows, h and w pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ditscope.errors import BadCheckpoint, BadRequest, foreign

TAKES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}
"""Numbers that its input may be of."""


class OnnxNetwork:
    """Calls an ONNX graph with one input; one output, or two: features and scores."""

    def __init__(self, file: Path) -> None:
        """Read and optimise the graph.

        Raises:
            ModuleNotFoundError: onnxruntime is not installed.
            BadCheckpoint: the file is no ONNX graph, or not one with one input of pictures.
        """
        import onnxruntime

        try:
            self._session = onnxruntime.InferenceSession(
                str(file), providers=["CPUExecutionProvider"]
            )
        except Exception as reason:  # the library's errors have no other common type
            raise BadCheckpoint(f"is not ONNX: {foreign(reason)}", file=file) from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or inputs[0].type not in TAKES or len(outputs) > 2:
            told = ", ".join(f"{each.name} {each.type}" for each in inputs)
            raise BadCheckpoint(
                f"takes {foreign(told)} and returns {len(outputs)} tensors",
                file=file,
                expected="one input of pictures, one output or two",
            )
        self._file, self._name, self._kind = file, inputs[0].name, TAKES[inputs[0].type]

    @property
    def whole_numbers(self) -> bool:
        """Whether it takes whole numbers from 0 to 255, and nothing else."""
        return self._kind is np.uint8

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """What it returns for pictures (B, 3, h, w). Raises BadRequest."""
        try:
            found = self._session.run(None, {self._name: x.numpy().astype(self._kind)})
        except Exception as reason:  # as above
            raise BadRequest(
                f"fails on pictures {tuple(x.shape)}: {foreign(reason)}",
                file=self._file,
                field="features",
                fix="--feature-size resizes pictures to the side that it takes",
            ) from None
        return tuple(torch.from_numpy(np.asarray(each)) for each in found)
