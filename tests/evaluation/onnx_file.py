"""Writes small ONNX graphs byte by byte, in the format of protocol buffers: no package is needed.

Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from pathlib import Path

FLOAT, UINT8 = 1, 2  # TensorProto.DataType


def write_graph(
    path: Path, operators: list[str], *, takes: int = FLOAT, returns: int = FLOAT
) -> Path:
    """A graph from `pictures` (B, 3, h, w) through operators with one input and one output."""
    names = ["pictures", *(f"after {name}" for name in operators)]
    nodes = b"".join(
        field(1, field(1, before) + field(2, after) + field(4, operator))
        for operator, before, after in zip(operators, names, names[1:], strict=False)
    )
    graph = nodes + field(2, "graph")
    graph += field(11, value("pictures", takes, ["B", 3, "h", "w"]))
    graph += field(12, value(names[-1], returns, None))
    opset = field(1, "") + number(2, 13)
    path.write_bytes(number(1, 8) + field(7, graph) + field(8, opset))
    return path


def value(name: str, kind: int, shape: list[str | int] | None) -> bytes:
    """ValueInfoProto of a tensor."""
    tensor = number(1, kind)
    if shape is not None:
        sides = (number(1, side) if isinstance(side, int) else field(2, side) for side in shape)
        tensor += field(2, b"".join(field(1, side) for side in sides))
    return field(1, name) + field(2, field(1, tensor))


def field(tag: int, content: str | bytes) -> bytes:
    """A field of bytes."""
    data = content.encode() if isinstance(content, str) else content
    return varint(tag << 3 | 2) + varint(len(data)) + data


def number(tag: int, content: int) -> bytes:
    """A field that is a whole number."""
    return varint(tag << 3) + varint(content)


def varint(content: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    out = bytearray()
    while content > 127:
        out.append(content & 127 | 128)
        content >>= 7
    return bytes([*out, content])
