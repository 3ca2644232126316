"""Strided convolution of a graph's input, rewritten as one of stride 1 with more input channels. The values are equal.

INT8 instructions multiply four input channels at a time, so that a convolution of one channel leaves most of their work
unused. A block of s voxels along each strided axis becomes channels: [B,C,D,H,W] with stride (1,2,2) is read as
[B,4C,D,H/2,W/2]. Kernels are padded with zeros to whole blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, helper, numpy_helper

FEW_CHANNELS = 4
"""Number of channels that one instruction multiplies; a convolution that reads fewer is rewritten."""
BLOCKS = ".blocks"
"""Ending of the names that the rewriting adds."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A strided convolution along its spatial axes."""

    size: tuple[int, ...]
    """Elements of the input."""
    kernel: tuple[int, ...]
    """Taps."""
    stride: tuple[int, ...]
    """Strides; each divides the size."""
    begin: tuple[int, ...]
    """Padding before the first element."""
    end: tuple[int, ...]
    """Padding after the last element."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks of the input."""
        return tuple(n // s for n, s in zip(self.size, self.stride, strict=True))

    @property
    def blocks_before(self) -> tuple[int, ...]:
        """Blocks of padding before the first one."""
        return tuple(-(-p // s) for p, s in zip(self.begin, self.stride, strict=True))

    @property
    def zeros_before(self) -> tuple[int, ...]:
        """Zero taps before the kernel's first one, up to the start of its block."""
        return tuple(q * s - p for q, s, p in zip(self.blocks_before, self.stride, self.begin, strict=True))

    @property
    def kernel_blocks(self) -> tuple[int, ...]:
        """Blocks that the kernel covers."""
        return tuple(-(-(k + z) // s) for k, z, s in zip(self.kernel, self.zeros_before, self.stride, strict=True))

    @property
    def blocks_after(self) -> tuple[int, ...]:
        """Blocks of padding after the last one, which give the convolution's number of outputs; may be negative."""
        outputs = (
            (n + p + e - k) // s + 1
            for n, p, e, k, s in zip(self.size, self.begin, self.end, self.kernel, self.stride, strict=True)
        )
        rows = zip(outputs, self.kernel_blocks, self.blocks_before, self.blocks, strict=True)
        return tuple(out - 1 + k - q - n for out, k, q, n in rows)


def read_blocks(graph: GraphProto) -> None:
    """Rewrite the strided convolutions of few channels that read an input of the graph."""
    inputs = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}
    tensors = {t.name: t for t in graph.initializer}
    for index, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "Conv" or node.input[0] not in inputs or node.input[1] not in tensors:
            continue
        weight = numpy_helper.to_array(tensors[node.input[1]])
        geometry = _geometry(node, weight, inputs[node.input[0]])
        if geometry is not None:
            _rewrite(graph, index, weight, geometry)


def _geometry(node: NodeProto, weight: NDArray[np.generic], shape: Sequence[int]) -> Geometry | None:
    """Geometry of a convolution that can be rewritten; None for another one."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    size, kernel, axes = tuple(shape[2:]), weight.shape[2:], weight.ndim - 2
    stride, pads = tuple(given.get("strides", [1] * axes)), tuple(given.get("pads", [0] * 2 * axes))
    dilated = any(d != 1 for d in given.get("dilations", []))
    if given.get("group", 1) != 1 or dilated or given.get("auto_pad", b"NOTSET") != b"NOTSET":
        return None
    divides = all(n > 0 and n % s == 0 for n, s in zip(size, stride, strict=True))
    if weight.shape[1] >= FEW_CHANNELS or max(stride) == 1 or not divides:
        return None
    found = Geometry(size=size, kernel=kernel, stride=stride, begin=pads[:axes], end=pads[axes:])
    return found if min(found.blocks_after) >= 0 else None


def _rewrite(graph: GraphProto, index: int, weight: NDArray[np.generic], geometry: Geometry) -> None:
    node = graph.node[index]
    value, name = node.input[0], node.input[1]
    channels, axes = weight.shape[1], weight.ndim - 2
    # [B,C,D/s,s,H/s,s,W/s,s] -> [B,C,s,s,s,D/s,H/s,W/s] -> [B,C*s*s*s,D/s,H/s,W/s]
    split = [-1, channels, *(n for pair in zip(geometry.blocks, geometry.stride, strict=True) for n in pair)]
    order = [0, 1, *range(3, 2 * axes + 2, 2), *range(2, 2 * axes + 2, 2)]
    joined = [-1, channels * int(np.prod(geometry.stride)), *geometry.blocks]
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(split, np.int64), f"{value}{BLOCKS}.split"),
            numpy_helper.from_array(np.array(joined, np.int64), f"{value}{BLOCKS}.joined"),
            numpy_helper.from_array(_blocked_weight(weight, geometry), name + BLOCKS),
        ]
    )
    steps = [f"{value}{BLOCKS}.{step}" for step in ("split_values", "ordered_values")]
    added = [
        helper.make_node("Reshape", [value, f"{value}{BLOCKS}.split"], steps[:1], f"{value}{BLOCKS}.1"),
        helper.make_node("Transpose", steps[:1], steps[1:], f"{value}{BLOCKS}.2", perm=order),
        helper.make_node("Reshape", [steps[1], f"{value}{BLOCKS}.joined"], [f"{value}{BLOCKS}"], f"{value}{BLOCKS}.3"),
    ]
    node.input[0], node.input[1] = value + BLOCKS, name + BLOCKS
    kept = [a for a in node.attribute if a.name not in ("strides", "pads", "kernel_shape")]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(
        helper.make_attribute(key, list(numbers))
        for key, numbers in (
            ("kernel_shape", geometry.kernel_blocks),
            ("pads", (*geometry.blocks_before, *geometry.blocks_after)),
            ("strides", (1,) * axes),
        )
    )
    for step in reversed(added):
        graph.node.insert(index, step)


def _blocked_weight(weight: NDArray[np.generic], geometry: Geometry) -> NDArray[np.generic]:
    """Weight [O,C,...] with its taps padded to whole blocks, and the taps of a block as channels."""
    axes = weight.ndim - 2
    taps = [k * s for k, s in zip(geometry.kernel_blocks, geometry.stride, strict=True)]
    padded = np.zeros((*weight.shape[:2], *taps), weight.dtype)
    inside = tuple(slice(z, z + k) for z, k in zip(geometry.zeros_before, geometry.kernel, strict=True))
    padded[(slice(None), slice(None), *inside)] = weight
    pairs = [n for pair in zip(geometry.kernel_blocks, geometry.stride, strict=True) for n in pair]
    order = [0, 1, *range(3, 2 * axes + 2, 2), *range(2, 2 * axes + 2, 2)]
    split = padded.reshape(*weight.shape[:2], *pairs).transpose(order)
    return np.ascontiguousarray(split.reshape(weight.shape[0], -1, *geometry.kernel_blocks))
