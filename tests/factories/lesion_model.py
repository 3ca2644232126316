"""A network trained in seconds on cases whose label depends only on a bright lesion in the CT.

The CTs are ellipsoids of tissue with noise; half of them contain one bright sphere at a random position. Radiomics and
text are random for every case, so that the network learns to ignore them. The tissue lies at the low end of the CT
window: with tissue as bright as a liver, a network this small often learns the absence of a lesion (undisturbed
tissue), and XGrad-CAM of `bad` has little to show. `docs/explain.md` describes this limit of the method.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from factories.nano import nano
from tmi.toolkit.config.schema import N_RADIOMICS, Config, CtConfig, CtEncoderConfig
from tmi.toolkit.models.tmi_clnet.model import TmiClnet, build

SHAPE_DHW = (48, 64, 64)
TISSUE_HU, LESION_HU, NOISE_HU = -65.0, 120.0, 6.0
RADIUS = (0.20, 0.26)
"""Smallest and largest radius of a lesion, in half widths of the volume."""


def lesion_config() -> Config:
    """The nano config with a volume large enough that the last stage has spatial resolution."""
    base = nano()
    encoder = CtEncoderConfig(block="basic", layers=(1, 1, 1, 1), planes=(8, 12, 16, 16))
    return replace(base, ct=CtConfig(shape_DHW=SHAPE_DHW), network=replace(base.network, ct_encoder=encoder))


def hounsfield(world: np.ndarray, centre: tuple[float, float, float] | None, radius: float) -> np.ndarray:
    """HU at points [..., 3] of the cube from -1 to 1: air, an ellipsoid of tissue and, if given, a lesion.

    Edges are smooth over a few hundredths of the cube, so that resampling changes little.
    """
    hu = _tissue(world)
    return hu if centre is None else hu + _lesion(world, centre, radius)


def _tissue(world: np.ndarray) -> np.ndarray:
    body = 1 / (1 + np.exp((np.sqrt((world**2 / np.array([0.85, 0.75, 1.6]) ** 2).sum(axis=-1)) - 1) * 25))
    return -1000 + (1000 + TISSUE_HU) * body


def _lesion(world: np.ndarray, centre: tuple[float, float, float], radius: float) -> np.ndarray:
    distance = np.sqrt(((world - np.array(centre)) ** 2).sum(axis=-1))
    return (LESION_HU - TISSUE_HU) / (1 + np.exp((distance - radius) * 60))


def sample_centre(rng: np.random.Generator) -> tuple[float, float, float]:
    """A random position well inside the body; order x, y, z."""
    while True:
        centre = rng.uniform(-0.7, 0.7, 3)
        if (centre[0] / 0.7) ** 2 + (centre[1] / 0.6) ** 2 < 0.9:
            return float(centre[0]), float(centre[1]), float(centre[2])


def _axes() -> np.ndarray:
    """Points of the input grid, [D, H, W, 3] in the order x, y, z."""
    d, h, w = (np.linspace(-1 + 1 / n, 1 - 1 / n, n) for n in SHAPE_DHW)
    z, y, x = np.meshgrid(d, h, w, indexing="ij")
    return np.stack([x, y, z], axis=-1)


def sample_batch(rng: np.random.Generator, count: int, config: Config) -> tuple[torch.Tensor, ...]:
    """CT, tokens, mask, radiomics and labels of `count` cases, half of them with a lesion."""
    world, (low, high) = _axes(), config.ct.window_hu
    tissue = _tissue(world)
    labels = np.arange(count) % 2
    ct = np.empty((count, 1, *SHAPE_DHW), np.float32)
    for i, label in enumerate(labels):
        centre = sample_centre(rng) if label else None
        radius = float(rng.uniform(*RADIUS))
        hu = tissue if centre is None else tissue + _lesion(world, centre, radius)
        hu = hu + rng.normal(0, NOISE_HU, SHAPE_DHW)
        ct[i, 0] = (np.clip(hu, low, high) - low) / (high - low)
    ids = rng.integers(5, 200, (count, 12))
    return (
        torch.from_numpy(ct),
        torch.from_numpy(ids),
        torch.ones(count, 12, dtype=torch.int64),
        torch.from_numpy(rng.uniform(-1, 1, (count, N_RADIOMICS)).astype(np.float32)),
        torch.from_numpy(labels),
    )


def train_lesion_network(*, steps: int = 40, seed: int = 1) -> TmiClnet:
    """Train on new random cases at every step; deterministic for a seed on one machine."""
    config, rng = lesion_config(), np.random.default_rng(seed)
    network = build(config.network, seed=seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=6e-3, total_steps=steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.train()
        for _ in range(steps):
            *inputs, labels = sample_batch(rng, 12, config)
            loss = cross_entropy(network(*inputs).logits_BK, labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval().requires_grad_(False)


def accuracy(network: TmiClnet, *, cases: int = 64, seed: int = 99) -> float:
    """Accuracy on cases that were not used for training."""
    *inputs, labels = sample_batch(np.random.default_rng(seed), cases, lesion_config())
    with torch.inference_mode():
        return float((network(*inputs).logits_BK.argmax(dim=1) == labels).float().mean())
