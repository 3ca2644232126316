"""Loads the weights of a pre-trained 3D ResNet into the CT encoder.

Known layouts, distinguished by their tensor names:

    hara        3D-ResNets-PyTorch, r3d50_K_200ep.pth: `state_dict`, stem [64,3,7,7,7], `fc`
    medicalnet  resnet_50*.pth: `state_dict`, `module.`, stem [64,1,7,7,7]; `conv_seg` in a segmentation network
    resnet      any other file with the same block names

A stem with three input channels is summed over them, which equals repeating a grey image in all three channels.
MedicalNet's network has the stem stride (2,2,2) and, in place of strides, dilation 2 and 4 in stages 3 and 4. Its
weights have the same shapes as those of a strided network, so the config must be changed: see `medicalnet_settings`.
Sources: K. Hara et al. 2018; S. Chen et al. 2019 (Med3D).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tmi.toolkit.config.schema import CtEncoderConfig
from tmi.toolkit.errors import UsageError
from tmi.toolkit.models.encoders.resnet3d import CtEncoder
from tmi.toolkit.storage.hashing import sha256_file
from tmi.training.pretrained.origin import file_origin
from tmi.training.pretrained.weight_file import DATA_PARALLEL_PREFIX, WeightFile, read_weights
from tmi.training.pretrained.weight_report import MatchedWeights, WeightReport, match_tensors

STEM = "conv1.weight"
SHORTCUT = ".downsample."
SUMMED = "summed over its 3 input channels"
STRIDE, DILATION = (2, 2, 2), (1, 1, 2, 4)
"""Stem stride and stage dilations of MedicalNet's ResNets."""


def medicalnet_settings(config: CtEncoderConfig) -> CtEncoderConfig:
    """The encoder config with MedicalNet's stem stride and dilations."""
    return replace(config, stem_stride_DHW=STRIDE, dilation=DILATION)


def detect_layout(file: WeightFile) -> str:
    """Layout of a file: `hara`, `medicalnet` or `resnet`."""
    stem = file.tensors.get(STEM)
    channels = stem.shape[1] if stem is not None and stem.ndim == 5 else 0
    if any(name.startswith("conv_seg") for name in file.tensors) or (file.parallel and channels == 1):
        return "medicalnet"
    return "hara" if channels == 3 else "resnet"


def _require_shortcuts(matched: MatchedWeights, path: Path) -> None:
    """Reject weights without the projections that the encoder's shortcuts (type B) need.

    ResNets with shortcut A (MedicalNet's resnet_18 and resnet_34) subsample and pad with zeros instead. Their blocks
    were trained for that; projections of random weights would add noise to every stage.

    Raises:
        UsageError: a projection is missing.
    """
    missing = [name for name in matched.missing if SHORTCUT in name]
    if missing:
        raise UsageError(
            f"weights {path.name} have no projection for shortcuts of the CT encoder ({missing[0]} and "
            f"{len(missing) - 1} more are missing): they are of a ResNet with shortcut type A, or incomplete",
            fix="give weights with shortcut type B, such as MedicalNet's resnet_50 or Hara's r3d50_K_200ep.pth",
        )


def read_ct_weights(path: Path, config: CtEncoderConfig) -> tuple[dict[str, Tensor], WeightReport]:
    """Read the tensors of the CT encoder, by the encoder's names, and a report of the file's tensors.

    Raises:
        UsageError: the file does not exist, is of a network of another size or with other shortcuts, or matches too few
            tensors.
        DamagedError: the file cannot be read or is not trusted.
    """
    file = read_weights(path)
    with torch.device("meta"):
        parameters = CtEncoder(config).state_dict()
    adapted: dict[str, str] = {}
    named: dict[str, tuple[str, Tensor]] = {}
    for original, tensor in file.tensors.items():
        name = f"backbone.{original}"
        if original == STEM and tensor.ndim == 5 and tensor.shape[1] == 3:
            tensor = tensor.sum(dim=1, keepdim=True)
            adapted[name] = SUMMED
        named[name] = (original, tensor)
    matched = match_tensors(named, parameters, optional="fc.", file=path.name, sizes="network.ct_encoder.*")
    _require_shortcuts(matched, path)
    report = WeightReport(
        encoder="ct",
        file=path.name,
        sha256=sha256_file(path),
        layout=detect_layout(file),
        wrapper=file.wrapper,
        prefix=DATA_PARALLEL_PREFIX if file.parallel else "",
        taken=tuple(matched.state),
        adapted=adapted,
        dropped=matched.dropped,
        missing=matched.missing,
        origin=file_origin(path),
    )
    return dict(matched.state), report
