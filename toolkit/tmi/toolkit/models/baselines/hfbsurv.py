"""Hierarchical factorised bilinear fusion of three modalities, with a classification head.

B batch, h_m embedding of a modality (50). MFB(a, b): Linear to pooled*rank each, product, dropout, sum over the rank,
signed square root, L2 norm.

    x_m = h_m ++ MFB_m(h_m, h_m)                              s_m = sigmoid(Linear x_m)
    unimodal = sum_m s_m x_m                                  [B,70]
    crossmodal = sum_(i<j) softmax_(i<j)((s_i + s_j) / (<softmax x_i, softmax x_j> + 0.5)) MFB_ij(x_i, x_j)   [B,20]
    head: BatchNorm, 256, 64 (Tanh, dropout), 2 on unimodal ++ crossmodal

Source: R. Li et al. 2022.
"""

from __future__ import annotations

from itertools import combinations

from jaxtyping import Float
from torch import Tensor, cat, nn, stack
from torch.nn.functional import normalize

from tmi.toolkit.config.schema import CLASSES, MODALITIES, Config
from tmi.toolkit.models.encoders.mlp import RadiomicsEncoder
from tmi.toolkit.models.outputs import Logits
from tmi.toolkit.models.tmi_clnet.fusion import feature_widths


class FactorisedBilinear(nn.Module):
    """Two vectors [B,C] -> [B,pooled] of length 1."""

    def __init__(self, width: int, *, pooled: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.shape = (pooled, rank)
        self.left = nn.Linear(width, pooled * rank)
        self.right = nn.Linear(width, pooled * rank)
        self.dropout = nn.Dropout(dropout)

    def forward(self, a_BC: Float[Tensor, "B C"], b_BC: Float[Tensor, "B C"]) -> Float[Tensor, "B P"]:
        """Pooled product [B,P] with L2 norm 1."""
        product = self.dropout(self.left(a_BC) * self.right(b_BC))
        pooled = product.unflatten(1, self.shape).sum(dim=2)
        # The derivative of sqrt is infinite at 0.
        rooted = pooled.sign() * (pooled.abs() + 1e-12).sqrt()
        return normalize(rooted, dim=1)


class HfbsurvFusion(nn.Module):
    """CT and text features and radiomics -> logits."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = config.system.hfbsurv
        pooling = {"pooled": sizes.pooled, "rank": sizes.rank, "dropout": sizes.pooling_dropout}
        self.radiomics_encoder = RadiomicsEncoder(config.network.radiomics_encoder)
        widths = feature_widths(config.network)
        wide = sizes.embedding + sizes.pooled
        self.embed = nn.ModuleDict(
            {
                m: nn.Sequential(
                    nn.Linear(widths[m], sizes.embedding),
                    nn.Tanh(),
                    nn.Linear(sizes.embedding, sizes.embedding),
                    nn.Tanh(),
                )
                for m in MODALITIES
            }
        )
        self.own = nn.ModuleDict({m: FactorisedBilinear(sizes.embedding, **pooling) for m in MODALITIES})  # type: ignore[arg-type]
        self.score = nn.ModuleDict({m: nn.Linear(wide, 1) for m in MODALITIES})
        self.pairs = list(combinations(MODALITIES, 2))
        self.cross = nn.ModuleDict({f"{a}_{b}": FactorisedBilinear(wide, **pooling) for a, b in self.pairs})  # type: ignore[arg-type]
        first, second = sizes.hidden
        self.head = nn.Sequential(
            nn.BatchNorm1d(wide + sizes.pooled),
            nn.Linear(wide + sizes.pooled, first),
            nn.Tanh(),
            nn.Dropout(sizes.head_dropout),
            nn.Linear(first, second),
            nn.Tanh(),
            nn.Dropout(sizes.head_dropout),
            nn.Linear(second, len(CLASSES)),
        )

    def forward(
        self,
        ct_features: Float[Tensor, "B C_ct"],
        text_features: Float[Tensor, "B C_text"],
        radiomics: Float[Tensor, "B 1781"],
    ) -> Logits:
        """Logits [B,K]."""
        encoded = {"clinical": text_features, "radiomics": self.radiomics_encoder(radiomics), "image": ct_features}
        x, score = {}, {}
        for modality, feature in encoded.items():
            h = self.embed[modality](feature)
            x[modality] = cat((h, self.own[modality](h, h)), dim=1)
            score[modality] = self.score[modality](x[modality]).sigmoid()
        unimodal = stack([score[m] * x[m] for m in MODALITIES]).sum(dim=0)
        dots = [(x[a].softmax(dim=1) * x[b].softmax(dim=1)).sum(dim=1, keepdim=True) for a, b in self.pairs]
        ratio = cat([(score[a] + score[b]) / (s + 0.5) for (a, b), s in zip(self.pairs, dots, strict=True)], dim=1)
        crossed = stack([self.cross[f"{a}_{b}"](x[a], x[b]) for a, b in self.pairs], dim=1)
        crossmodal = (ratio.softmax(dim=1).unsqueeze(2) * crossed).sum(dim=1)
        return Logits(self.head(cat((unimodal, crossmodal), dim=1)))
