"""BERT over the clinical text.

B batch, T tokens, C width. Pooling of the last hidden layer: the mean over the attended tokens (`mean`), its first
token (`cls`), or BERT's own pooler on that token (`pooler`, the released code). Source: J. Devlin et al. 2019.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from tmi.toolkit.config.schema import Config, TextEncoderConfig


class TextEncoder(nn.Module):
    """Token ids and attention mask [B,T] -> feature [B,C]."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.pooling: Literal["mean", "cls", "pooler"] = config.pooling
        self.bert = BertModel(
            BertConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=config.intermediate_size,
                max_position_embeddings=512,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                # sdpa and eager agree; eager keeps the softmax a node of its own in the exported graph
                attn_implementation="eager",
            ),
            add_pooling_layer=config.pooling == "pooler",
        )

    def forward(self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"]) -> Float[Tensor, "B C"]:
        """Pooled last hidden layer; tokens whose mask is 0 have no influence."""
        # An additive float mask keeps transformers' own mask construction, which inspects values, out of the
        # exported graph. -3e4 is representable in FP16.
        visible = attention_mask.to(self.bert.dtype)
        bias = (1.0 - visible)[:, None, None, :] * -3.0e4
        output = self.bert(input_ids=input_ids, attention_mask=bias)
        if self.pooling == "pooler":
            pooled: Tensor = output.pooler_output
            return pooled
        hidden: Tensor = output.last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        weight = visible[:, :, None]
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)


def text_encoder(config: Config) -> TextEncoder:
    """The text encoder of a config."""
    return TextEncoder(config.network.text_encoder)
