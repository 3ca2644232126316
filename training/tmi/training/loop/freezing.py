"""Frozen parts of a network, and caching of the outputs of fully frozen encoders.

A frozen part gets no gradient and runs in evaluation mode: BatchNorm uses its running statistics and dropout is off.
The output of a fully frozen encoder therefore depends on the case alone. It is computed once for each case, in batches
of one, and then replaces the CT or the tokens of the case in a batch; the encoder passes it through. Shapes: B cases of
a batch, C channels.
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
"""Stages of a ResNet, in forward order."""


def frozen_modules(network: nn.Module, config: Config) -> list[nn.Module]:
    """Return the modules that `train.freeze` names.

    Raises:
        UsageError: the model has no such encoder, or the encoder has no such part.
    """
    encoder_of = encoders(network)
    parts: list[nn.Module] = []
    for entry in config.train.freeze:
        name, _, last = entry.partition(":")  # "ct:layer2" freezes the stem and the stages up to layer2
        if name not in encoder_of:
            raise UsageError(
                f"train.freeze names {name}, an encoder that {config.system.name} does not have with this config",
                fix=f"its encoders: {', '.join(encoder_of) or 'none'}",
            )
        parts += _leading_modules(encoder_of[name], name, last) if last else [encoder_of[name]]
    return parts


def _leading_modules(encoder: nn.Module, name: str, last: str) -> list[nn.Module]:
    if name == "ct":
        backbone = getattr(encoder, "backbone", encoder)
        if not hasattr(backbone, "layer4"):
            raise UsageError(
                f"train.freeze names ct:{last}, but the CT encoder has no stages", fix="freeze the whole encoder: ct"
            )
        stages = STAGES[1 : STAGES.index(last) + 1]
        return [backbone.conv1, backbone.bn1, *(getattr(backbone, stage) for stage in stages)]
    layers = encoder.bert.encoder.layer  # type: ignore[union-attr]
    if int(last) > len(layers):  # type: ignore[arg-type]
        raise UsageError(
            f"train.freeze names text:{last}, but the text encoder has {len(layers)} layers",  # type: ignore[arg-type]
            fix="name fewer layers, or freeze the whole encoder: text",
        )
    return [encoder.bert.embeddings, *layers[: int(last)]]  # type: ignore[union-attr, index, list-item]


def set_frozen_eval(network: nn.Module, config: Config) -> None:
    """Put the frozen modules into evaluation mode; the rest of the network keeps its mode."""
    for part in frozen_modules(network, config):
        part.eval()
    if config.train.frozen_batch_norm:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def cacheable_encoders(network: nn.Module, config: Config) -> tuple[str, ...]:
    """Names of the encoders whose outputs can be cached: fully frozen, with inputs that no augmentation changes."""
    if not config.train.cache_frozen:
        return ()
    augmented = {"ct"} if config.augmentation.active else set()
    present = encoders(network)
    return tuple(n for n in ("ct", "text") if n in config.train.freeze and n in present and n not in augmented)


def bypass_encoder(encoder: nn.Module) -> None:
    """Make an encoder return an input that is its own cached output [B,C] unchanged.

    A CT has five axes and token ids are integers, so neither can be confused with a cached output. Other inputs are
    encoded as before, and the encoder's weights do not change.
    """
    encode = encoder.forward

    def forward(x: Tensor, *more: Tensor) -> Any:
        return x if x.ndim == 2 and x.is_floating_point() else encode(x, *more)

    encoder.forward = forward


class FrozenFeatures:
    """Cache of encoder outputs by encoder key; folds that start from the same weights share the entries."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, np.ndarray]] = {}

    def get_or_compute(
        self, key: str, encoder: nn.Module, rows: Sequence[int], inputs: Any, device: torch.device
    ) -> dict[int, np.ndarray]:
        """Return the outputs [C] of the given rows; each row is computed once.

        Args:
            key: digest of everything that the output depends on, except the case.
            encoder: run in evaluation mode; its mode is restored afterwards.
            rows: positions of the cases in the cohort.
            inputs: function of a row that returns the encoder's inputs as a batch of one.
            device: device of the encoder.
        """
        outputs = self._rows.setdefault(key, {})
        training = encoder.training
        encoder.eval()
        try:
            with torch.no_grad():
                for row in rows:
                    if row not in outputs:
                        output = encoder(*(tensor.to(device) for tensor in inputs(row)))
                        outputs[row] = output[0].float().cpu().numpy()
        finally:
            encoder.train(training)
        return outputs


def encoder_cache_key(encoder: nn.Module, *more: str) -> str:
    """SHA-256 of an encoder's weights and of any other strings that its output depends on."""
    import hashlib

    digest = hashlib.sha256("\n".join(more).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
