"""Simple feature fusion: a few axial slices, each with the radiomics, judged one by one and averaged.

B batch, S slices. A slice goes through a 2D ResNet and a Linear to 8 features; these and the scaled radiomics through
Linear -> 8, ReLU, Linear -> 2; the softmax is averaged over the slices. The logits returned are the logarithm of that
average, so the cross entropy is that of the averaged probability. Source: Y. S. Choi et al. 2021.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, cat, nn

from tmi.toolkit.config import CLASSES, N_RADIOMICS, Config
from tmi.training.systems.build import Logits
from tmi.training.systems.resnet50 import resnet2d

COUNTED_ON = 64
"""Depth that the config counts the slices on."""


class SimpleFf(nn.Module):
    """CT and radiomics -> logits."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        simple = config.system.simpleff
        depth = config.ct.shape_DHW[0]
        self.slices = [min(round(s * depth / COUNTED_ON), depth - 1) for s in simple.slices_of_64]
        self.slice_encoder = resnet2d(config.system.resnet2d)
        self.reduce = nn.Linear(config.system.resnet2d.feature_width, simple.features)
        self.hidden = nn.Linear(simple.features + N_RADIOMICS, simple.features)
        self.out = nn.Linear(simple.features, len(CLASSES))

    def forward(
        self,
        ct: Float[Tensor, "B 1 D H W"],
        input_ids: Tensor,
        attention_mask: Tensor,
        radiomics: Float[Tensor, "B 1781"],
    ) -> Logits:
        """Logarithm of the averaged probabilities [B,K]; the text is not looked at."""
        slices = ct[:, :, self.slices].transpose(1, 2).flatten(0, 1)  # [B*S,1,H,W]
        features = self.reduce(self.slice_encoder(slices))
        beside = radiomics.repeat_interleave(len(self.slices), dim=0)
        logits = self.out(self.hidden(cat((features, beside), dim=1)).relu())
        log_p = logits.log_softmax(dim=1).unflatten(0, (len(ct), len(self.slices)))
        return Logits(log_p.logsumexp(dim=1) - log_p.new_tensor(len(self.slices)).log())
