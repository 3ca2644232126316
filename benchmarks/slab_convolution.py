"""3D convolutions computed in slabs along the depth, so that a float64 network fits into memory at full size.

torch computes a float64 convolution with im2col: it copies every window of the volume into a column. For the stem of
the paper's CT encoder (7x7x7 windows at 64x256x256 positions) the columns take 11 GiB. A convolution is local, so the
output can be computed a few depths at a time:

    y[d0:d1] = conv(x[s * d0 - p : s * (d1 - 1) - p + k])      s stride, p padding, k kernel along the depth

with zeros outside of x. The result differs from the convolution only by the order of summation.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

COLUMNS = 2**28
"""Largest size of the columns of one slab in bytes."""


def use_slab_convolutions(network: nn.Module, *, columns: int = COLUMNS) -> nn.Module:
    """Let all 3D convolutions of a network compute in slabs, and return the network.

    Args:
        network: changed in place.
        columns: largest size of the columns of one slab in bytes.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.forward = partial(convolve_in_slabs, module, columns=columns)  # type: ignore[method-assign]
    return network


def convolve_in_slabs(conv: nn.Conv3d, x_BCDHW: Tensor, *, columns: int = COLUMNS) -> Tensor:
    """Output of `conv`, computed in as many slabs as its columns need.

    Args:
        conv: convolution without dilation, with zero padding.
        x_BCDHW: input.
        columns: largest size of the columns of one slab in bytes.

    Raises:
        ValueError: the convolution has dilation or another padding than a number of zeros.
    """
    if conv.dilation != (1, 1, 1) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ValueError("only convolutions without dilation and with zero padding can be computed in slabs")
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    pad, *across = conv.padding
    depth, *plane = (
        (size + 2 * p - k) // s + 1
        for size, p, k, s in zip(x_BCDHW.shape[2:], conv.padding, conv.kernel_size, conv.stride, strict=True)
    )
    column = conv.weight[0].numel() * conv.weight.element_size()
    thick = max(1, columns // (column * plane[0] * plane[1]))
    y_BCDHW = x_BCDHW.new_empty((x_BCDHW.shape[0], conv.out_channels, depth, *plane))
    for first in range(0, depth, thick):
        last = min(first + thick, depth)
        # input depths that the output depths first:last read; zeros where they lie outside
        start, end = first * stride - pad, (last - 1) * stride - pad + kernel
        inside = x_BCDHW[:, :, max(start, 0) : min(end, x_BCDHW.shape[2])]
        slab = F.pad(inside, (0, 0, 0, 0, max(-start, 0), max(end - x_BCDHW.shape[2], 0)))
        y_BCDHW[:, :, first:last] = F.conv3d(
            slab, conv.weight, conv.bias, conv.stride, (0, *across), groups=conv.groups
        )
    return y_BCDHW
