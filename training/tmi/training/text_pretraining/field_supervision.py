"""Supervises the tokens of each field of a record, besides the pooled feature.

The pooled feature is the mean over all tokens. A field of fifty contributes a fiftieth of it, and the loss of its
column sees the noise of all others, so from the pooled loss alone an encoder learns to read a long record very slowly.
Here a linear layer, discarded later, is applied to the mean of each field's own tokens:

    own    its columns must be the field's targets: the encoder learns to read the number where it stands
    leak   its other columns must be 0: each field writes into directions of its own, which the mean then keeps apart

B records, T tokens, F fields, C channels, K columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot

from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.training.text_pretraining.targets import target_columns

Spans = Sequence[tuple[str | None, int, int]]
"""Name, first character and one past the last of each field in a text."""
NO_FIELD = -1
"""Field of a special token and of padding."""


def token_fields(
    texts: Sequence[str], spans: Sequence[Spans], schema: Schema, tokenizer: Tokenizer, *, max_length: int
) -> Int[np.ndarray, "B T"]:
    """Index of the field that each token belongs to; `NO_FIELD` for special tokens and padding."""
    index = {field.name: i for i, field in enumerate(schema.fields)}
    offsets = [np.array(tokenizer.offsets(text, max_length=max_length)) for text in texts]
    fields_BT = np.full((len(texts), max(map(len, offsets))), NO_FIELD)
    for row, (offset_T2, pieces) in enumerate(zip(offsets, spans, strict=True)):
        starts = np.array([start for _, start, _ in pieces])
        names = np.array([NO_FIELD if name is None else index[name] for name, *_ in pieces])
        if not len(pieces):
            continue
        last = np.searchsorted(starts, offset_T2[:, 0], side="right") - 1
        special = offset_T2[:, 1] == 0
        fields_BT[row, : len(offset_T2)] = np.where(special, NO_FIELD, names[last])
    return fields_BT


class FieldReader(nn.Module):
    """Linear layer on the mean of each field's tokens.

    Args:
        width: channels of a token.
        schema: fields of the records.
    """

    own_FK: Tensor

    def __init__(self, width: int, schema: Schema) -> None:
        super().__init__()
        columns = target_columns(schema)
        is_value = np.array([kind != "presence" for kind in columns.kinds])
        own = np.array([[name == f.name for name in columns.names] for f in schema.fields]) & is_value
        self.register_buffer("own_FK", torch.from_numpy(own))
        self.linear = nn.Linear(width, len(columns.names))

    def forward(
        self,
        hidden_BTC: Float[Tensor, "B T C"],
        fields_BT: Int[Tensor, "B T"],
        targets_BK: Float[Tensor, "B K"],
        present_BF: Bool[Tensor, "B F"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Mean squared errors: of the own columns of the present fields, and of all other columns from 0."""
        member_BTF = one_hot(fields_BT + 1, len(self.own_FK) + 1)[:, :, 1:].to(hidden_BTC.dtype)
        count_BF = member_BTF.sum(dim=1)
        mean_BFC = torch.einsum("btf,btc->bfc", member_BTF, hidden_BTC) / count_BF.clamp(min=1)[:, :, None]
        read_BFK = self.linear(mean_BFC)
        weights_FK = self.own_FK / self.own_FK.sum(dim=1, keepdim=True)
        error_BF = ((read_BFK - targets_BK[:, None]).square() * weights_FK).sum(dim=2)
        counted_BF = present_BF & (count_BF > 0)
        own = (error_BF * counted_BF).sum() / counted_BF.sum().clamp(min=1)
        return own, (read_BFK.square() * ~self.own_FK).mean()
