"""Hierarchical factorised bilinear fusion of three modalities, with a classification head.

B batch, h_m embedding of a modality (50). MFB(a, b) of two projections to pooled*rank: product, dropout, sum over the
rank, signed square root, L2 norm. P_m and Q_m are Linear layers of one modality, and `score` is one Linear for all.

    x_m = h_m ++ MFB(P_m h_m, P_m h_m)                        s_m = sigmoid(score x_m),  y_m = s_m x_m
    unimodal = sum_m y_m                                      [B,70]
    crossmodal = sum_(i<j) softmax_(i<j)((s_i + s_j) / (<softmax y_i, softmax y_j> + 0.5)) MFB(Q_i y_i, Q_j y_j)  [B,20]
    head: BatchNorm, 256, 64 (Tanh, dropout), 2 on unimodal ++ crossmodal

Source: R. Li et al. 2022. At the sizes of preset `paper` this is 360,725 parameters; the source's code counts two more,
the fixed range and shift of its survival output. Two slips of that code are not repeated (`docs/decisions.md`). With
`system.hfbsurv.layers = "separate"`, as in earlier versions, each MFB has two projections of its own and each modality
a score layer, and pairs and softmax take x_m instead of y_m.
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


class BilinearPooling(nn.Module):
    """Two projections [B,pooled*rank] -> [B,pooled] of length 1."""

    def __init__(self, *, pooled: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.shape = (pooled, rank)
        self.dropout = nn.Dropout(dropout)

    def forward(self, a_BR: Float[Tensor, "B R"], b_BR: Float[Tensor, "B R"]) -> Float[Tensor, "B P"]:
        """Pooled product [B,P] with L2 norm 1."""
        pooled = self.dropout(a_BR * b_BR).unflatten(1, self.shape).sum(dim=2)
        # The derivative of sqrt is infinite at 0.
        rooted = pooled.sign() * (pooled.abs() + 1e-12).sqrt()
        return normalize(rooted, dim=1)


class FactorisedBilinear(BilinearPooling):
    """Two vectors [B,C], each with a projection of its own, -> [B,pooled] of length 1."""

    def __init__(self, width: int, *, pooled: int, rank: int, dropout: float) -> None:
        super().__init__(pooled=pooled, rank=rank, dropout=dropout)
        self.left = nn.Linear(width, pooled * rank)
        self.right = nn.Linear(width, pooled * rank)

    def forward(self, a_BC: Float[Tensor, "B C"], b_BC: Float[Tensor, "B C"]) -> Float[Tensor, "B P"]:
        """Pooled product [B,P] with L2 norm 1."""
        return super().forward(self.left(a_BC), self.right(b_BC))


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
        self.pairs = list(combinations(MODALITIES, 2))
        self.shared = sizes.layers == "shared"
        if self.shared:
            projected = sizes.pooled * sizes.rank
            self.own = nn.ModuleDict({m: nn.Linear(sizes.embedding, projected) for m in MODALITIES})
            self.score: nn.Module = nn.Linear(wide, 1)
            self.cross = nn.ModuleDict({m: nn.Linear(wide, projected) for m in MODALITIES})
            self.pool = BilinearPooling(**pooling)  # type: ignore[arg-type]
        else:
            self.own = nn.ModuleDict({m: FactorisedBilinear(sizes.embedding, **pooling) for m in MODALITIES})  # type: ignore[arg-type]
            self.score = nn.ModuleDict({m: nn.Linear(wide, 1) for m in MODALITIES})
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
        x, y, score = {}, {}, {}
        for modality, feature in encoded.items():
            h = self.embed[modality](feature)
            x[modality] = cat((h, self._own(modality, h)), dim=1)
            score[modality] = self._score(modality, x[modality]).sigmoid()
            y[modality] = score[modality] * x[modality]
        unimodal = stack([y[m] for m in MODALITIES]).sum(dim=0)
        z = y if self.shared else x
        dots = [(z[a].softmax(dim=1) * z[b].softmax(dim=1)).sum(dim=1, keepdim=True) for a, b in self.pairs]
        ratio = cat([(score[a] + score[b]) / (s + 0.5) for (a, b), s in zip(self.pairs, dots, strict=True)], dim=1)
        if self.shared:
            crossed_by = {m: self.cross[m](z[m]) for m in MODALITIES}
            crossed = stack([self.pool(crossed_by[a], crossed_by[b]) for a, b in self.pairs], dim=1)
        else:
            crossed = stack([self.cross[f"{a}_{b}"](z[a], z[b]) for a, b in self.pairs], dim=1)
        crossmodal = (ratio.softmax(dim=1).unsqueeze(2) * crossed).sum(dim=1)
        return Logits(self.head(cat((unimodal, crossmodal), dim=1)))

    def _own(self, modality: str, h_BC: Float[Tensor, "B C"]) -> Float[Tensor, "B P"]:
        projected = self.own[modality](h_BC) if self.shared else h_BC
        pool = self.pool if self.shared else self.own[modality]
        pooled: Tensor = pool(projected, projected)
        return pooled

    def _score(self, modality: str, x_BC: Float[Tensor, "B X"]) -> Float[Tensor, "B 1"]:
        layer = self.score if self.shared else self.score[modality]  # type: ignore[index]
        value: Tensor = layer(x_BC)
        return value
