"""Training of each encoder alone: a linear layer on its feature predicts the outcome.

B cases, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tmi.toolkit.config.schema import CLASSES, Config
from tmi.training.data.fold_dataset import Batch
from tmi.training.systems.factory import encoders


class EncoderHeads(nn.Module):
    """Linear layers behind the encoders that are not frozen; they are no part of the network.

    Args:
        network: network with the encoders.
        config: settings of the run.
        seed: seed of the layers' weights; torch's global random state is restored.
    """

    def __init__(self, network: nn.Module, config: Config, *, seed: int) -> None:
        super().__init__()
        sizes = config.network
        widths = {
            "ct": sizes.ct_encoder.feature_width,
            "text": sizes.text_encoder.hidden_size,
            "radiomics": sizes.radiomics_encoder.out,
        }
        names = [name for name in encoders(network) if name not in config.train.freeze]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleDict({name: nn.Linear(widths[name], len(CLASSES)) for name in names})

    def forward(self, network: nn.Module, batch: Batch, *, label_smoothing: float) -> Tensor:
        """Mean of the encoders' cross entropies on a batch."""
        inputs = {
            "ct": (batch.ct,),
            "text": (batch.input_ids, batch.attention_mask),
            "radiomics": (batch.radiomics,),
        }
        encoder_of = encoders(network)
        logits = [head(encoder_of[name](*inputs[name])) for name, head in self.heads.items()]
        with torch.autocast(batch.labels.device.type, enabled=False):
            losses = [cross_entropy(z.float(), batch.labels, label_smoothing=label_smoothing) for z in logits]
            return torch.stack(losses).mean()
