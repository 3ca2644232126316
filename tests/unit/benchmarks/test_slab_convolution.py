"""Convolutions in slabs: equal to the convolution, for single layers and a whole encoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slab_convolution import convolve_in_slabs, use_slab_convolutions
from tmi.toolkit.config.schema import Config
from tmi.toolkit.models.encoders.resnet3d import CtEncoder

CONVOLUTIONS = {
    "stem": nn.Conv3d(1, 4, 7, stride=(1, 2, 2), padding=3, bias=False),
    "strided stem": nn.Conv3d(1, 4, 7, stride=2, padding=3),
    "same size": nn.Conv3d(1, 4, 3, padding=1),
    "halved": nn.Conv3d(1, 4, 3, stride=2, padding=1, bias=False),
    "shortcut": nn.Conv3d(1, 4, 1, stride=2, bias=False),
    "no padding": nn.Conv3d(1, 4, 3),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("columns", [1, 40_000, 2**28], ids=["one depth a slab", "some", "all at once"])
@torch.inference_mode()
def test_slabs_equal_convolution(name, columns):
    """The output is that of the convolution for any slab size, stride and padding."""
    conv = CONVOLUTIONS[name].double()
    x = torch.randn(2, 1, 11, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(convolve_in_slabs(conv, x, columns=columns), conv(x), rtol=1e-13, atol=1e-13)


@torch.inference_mode()
def test_encoder_in_slabs_gives_same_features(nano_config: Config):
    """A CT encoder gives the same features with all its convolutions in slabs."""
    encoder = CtEncoder(nano_config.network.ct_encoder).double().eval()
    ct = torch.rand(1, 1, *nano_config.ct.shape_DHW, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = encoder(ct)
    torch.testing.assert_close(use_slab_convolutions(encoder, columns=1)(ct), expected, rtol=1e-12, atol=1e-12)


def test_dilated_convolution_is_rejected():
    """Dilation is not supported."""
    with pytest.raises(ValueError, match="only convolutions without dilation"):
        convolve_in_slabs(nn.Conv3d(1, 1, 3, dilation=2), torch.zeros(1, 1, 8, 8, 8))
