"""3D convolutions computed slab by slab along the depth, so that a float64 network fits into memory at full size.

torch has no vectorised float64 convolution: it writes every window of the volume out as a column and multiplies. For
the stem of the paper's CT encoder (7x7x7 windows over 64x256x256 places) that is 11 GiB at once. A convolution is
local, so the places can be done a few depths at a time:

    y[d0:d1] = conv(x[s * d0 - p : s * (d1 - 1) - p + k])      s stride, p padding, k kernel along the depth

with zeros outside of x. The sums are the same; torch may only add them in another order.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

COLUMNS = 2**28
"""Bytes that the columns of one slab may take."""


def use_slab_convolutions(network: nn.Module, *, columns: int = COLUMNS) -> nn.Module:
    """The network, its 3D convolutions computing in slabs from now on.

    Args:
        network: changed in place.
        columns: bytes that one slab's columns may take.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.forward = partial(convolve_in_slabs, module, columns=columns)  # type: ignore[method-assign]
    return network


def convolve_in_slabs(conv: nn.Conv3d, x_BCDHW: Tensor, *, columns: int = COLUMNS) -> Tensor:
    """What `conv` answers, in as many slabs as its columns need.

    Raises:
        ValueError: the convolution dilates or pads with something else than zeros by number.
    """
    if conv.dilation != (1, 1, 1) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ValueError("only plain convolutions with zeros around them are computed in slabs")
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
        start, end = first * stride - pad, (last - 1) * stride - pad + kernel
        inside = x_BCDHW[:, :, max(start, 0) : min(end, x_BCDHW.shape[2])]
        slab = F.pad(inside, (0, 0, 0, 0, max(-start, 0), max(end - x_BCDHW.shape[2], 0)))
        y_BCDHW[:, :, first:last] = F.conv3d(
            slab, conv.weight, conv.bias, conv.stride, (0, *across), groups=conv.groups
        )
    return y_BCDHW
