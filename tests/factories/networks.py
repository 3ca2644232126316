"""Settings and inputs of the small networks: every trainable network, as `--set` settings, and random batches."""

from __future__ import annotations

import torch
from torch import Tensor

from factories.nano import nano
from tmi.toolkit.config.overrides import override
from tmi.toolkit.config.schema import Config
from tmi.toolkit.model_registry import MODELS

TORCH_MODELS = tuple(name for name, spec in MODELS.items() if spec.trainer == "torch")
ESTIMATORS = tuple(name for name, spec in MODELS.items() if spec.trainer == "sklearn")
SUBSETS = [
    ["image"],
    ["clinical"],
    ["radiomics"],
    ["image", "clinical"],
    ["clinical", "radiomics"],
    ["image", "radiomics"],
]
VARIANTS = [
    *((f"system.name={name}",) for name in TORCH_MODELS),
    ("system.name=resnet50", "system.dims=3"),
    ("system.name=vit", "system.dims=3"),
    *((f"network.modalities={str(s).replace(chr(39), chr(34))}",) for s in SUBSETS),
]
"""Settings of every model that is trained by gradient steps."""
LABELS = torch.tensor([0, 1, 1, 0])


def configured(*settings: str) -> Config:
    """The nano config with settings as given to `--set`."""
    return override(nano(), settings)


def inputs(batch: int = 4, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Random keyword arguments of a network's `forward`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "ct": torch.rand(batch, 1, *nano().ct.shape_DHW, generator=generator, dtype=dtype),
        "input_ids": torch.randint(5, 200, (batch, 12), generator=generator),
        "attention_mask": torch.ones(batch, 12, dtype=torch.long),
        "radiomics": torch.rand(batch, 1781, generator=generator, dtype=dtype) * 2 - 1,
    }
