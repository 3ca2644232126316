"""Parts of a network that are not trained, and the outputs of wholly frozen encoders, computed once a case.

A frozen part gets no gradient and runs as in prediction: its BatchNorm statistics and its dropout stay still too. So
the output of a wholly frozen encoder is a function of the case alone; it is computed once, one case at a time, and from
then on takes the place of the case's CT or tokens in a batch. The encoder passes it through. N cases, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UsageError
from tmi.training.systems.factory import encoders

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
"""Of a ResNet, in the order they run."""


def frozen_modules(network: nn.Module, config: Config) -> list[nn.Module]:
    """The modules that `train.freeze` names.

    Raises:
        UsageError: the system has no such encoder, or the encoder no such part.
    """
    there = encoders(network)
    parts: list[nn.Module] = []
    for entry in config.train.freeze:
        name, _, upto = entry.partition(":")
        if name not in there:
            raise UsageError(
                f"train.freeze names {name}, an encoder that {config.system.name} does not have here",
                fix=f"it has: {', '.join(there) or 'none'}",
            )
        parts += _leading_modules(there[name], name, upto) if upto else [there[name]]
    return parts


def _leading_modules(encoder: nn.Module, name: str, upto: str) -> list[nn.Module]:
    if name == "ct":
        backbone = getattr(encoder, "backbone", encoder)
        if not hasattr(backbone, "layer4"):
            raise UsageError(
                f"train.freeze names ct:{upto}, and the CT encoder has no stages", fix="freeze it whole: ct"
            )
        stages = STAGES[1 : STAGES.index(upto) + 1]
        return [backbone.conv1, backbone.bn1, *(getattr(backbone, stage) for stage in stages)]
    layers = encoder.bert.encoder.layer  # type: ignore[union-attr]
    if int(upto) > len(layers):  # type: ignore[arg-type]
        raise UsageError(
            f"train.freeze names text:{upto}, and the text encoder has {len(layers)} layers",  # type: ignore[arg-type]
            fix="name fewer layers, or freeze it whole: text",
        )
    return [encoder.bert.embeddings, *layers[: int(upto)]]  # type: ignore[union-attr, index, list-item]


def set_frozen_eval(network: nn.Module, config: Config) -> None:
    """Put what is frozen into evaluation mode; the rest of the network stays as it is."""
    for part in frozen_modules(network, config):
        part.eval()
    if config.train.frozen_batch_norm:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def cacheable_encoders(network: nn.Module, config: Config) -> tuple[str, ...]:
    """Encoders whose outputs may be computed once: frozen as a whole, and of inputs that no augmentation changes."""
    if not config.train.cache_frozen:
        return ()
    moving = {"ct"} if config.augmentation.active else set()
    there = encoders(network)
    return tuple(n for n in ("ct", "text") if n in config.train.freeze and n in there and n not in moving)


def bypass_encoder(encoder: nn.Module) -> None:
    """Let an encoder take its own output [B,C] for its input and give it back as it is.

    A CT has five axes and token ids are no floats, so the two cannot be mistaken for each other. What the encoder
    computes, and its state, stay as they were.
    """
    compute = encoder.forward

    def forward(x: Tensor, *more: Tensor) -> Any:
        return x if x.ndim == 2 and x.is_floating_point() else compute(x, *more)

    encoder.forward = forward


class FrozenFeatures:
    """Outputs of frozen encoders, by what computed them, so that folds that start from the same weights share them."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, np.ndarray]] = {}

    def get_or_compute(
        self, key: str, encoder: nn.Module, rows: Sequence[int], inputs: Any, device: torch.device
    ) -> dict[int, np.ndarray]:
        """Outputs of the named rows, each computed once.

        Args:
            key: digest of all that the output depends on, the case aside.
            encoder: runs in evaluation mode; its mode is left as it was.
            rows: positions of cases in the cohort.
            inputs: of a row, the encoder's inputs as a batch of one.
            device: where it runs.
        """
        known = self._rows.setdefault(key, {})
        training = encoder.training
        encoder.eval()
        try:
            with torch.no_grad():
                for row in rows:
                    if row not in known:
                        answer = encoder(*(tensor.to(device) for tensor in inputs(row)))
                        known[row] = answer[0].float().cpu().numpy()
        finally:
            encoder.train(training)
        return known


def encoder_cache_key(encoder: nn.Module, *more: str) -> str:
    """Digest of an encoder's weights and of whatever else its output depends on."""
    import hashlib

    digest = hashlib.sha256("\n".join(more).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
