"""Padding of token batches: trims them to the length of their longest text.

Padding is masked in every attention layer, so an encoder returns the same features with less of it; the parity checks
run on trimmed tokens. Lengths are rounded up to a multiple of `LENGTH_MULTIPLE`, because OpenVINO compiles kernels and
TensorRT captures a graph for every new length: with 512 tokens there are at most 16 lengths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

LENGTH_MULTIPLE = 32
"""Lengths are multiples of this, up to the longest input of the encoder."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """B batch, T tokens."""

    input_ids_BT: Int64[NDArray[np.int64], "B T"]
    """Ids, padded with 0."""
    attention_mask_BT: Int64[NDArray[np.int64], "B T"]
    """1 for tokens, 0 for padding."""


def concatenate_tokens(tokens: Sequence[Tokens]) -> Tokens:
    """Concatenate texts of equal length into one batch."""
    return Tokens(
        input_ids_BT=np.concatenate([one.input_ids_BT for one in tokens]),
        attention_mask_BT=np.concatenate([one.attention_mask_BT for one in tokens]),
    )


def group_by_length(texts: Mapping[int, Mapping[str, Tokens]]) -> list[list[int]]:
    """Group texts that have equal lengths for every encoder; returns their numbers.

    Args:
        texts: number of a text -> name of an encoder -> its tokens.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, by_encoder in texts.items():
        groups.setdefault(tuple(one.input_ids_BT.shape[1] for one in by_encoder.values()), []).append(number)
    return list(groups.values())


def trim_padding(
    input_ids_BT: Int64[NDArray[np.int64], "B T"],
    attention_mask_BT: Int64[NDArray[np.int64], "B T"],
    *,
    longest: int,
) -> Tokens:
    """The same tokens with as little padding as `LENGTH_MULTIPLE` allows.

    Args:
        input_ids_BT: ids, padded at the end.
        attention_mask_BT: 1 for tokens, 0 for padding.
        longest: longest input of the encoder; tokens beyond it are kept.
    """
    used = np.flatnonzero(attention_mask_BT.any(axis=0))
    # The last column that any text uses; one column remains for empty texts.
    real = int(used[-1]) + 1 if used.size else 1
    width = max(real, min(-(-real // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, longest))
    more = max(0, width - input_ids_BT.shape[1])
    pad = ((0, 0), (0, more))
    return Tokens(
        input_ids_BT=np.ascontiguousarray(np.pad(input_ids_BT, pad)[:, :width]),
        attention_mask_BT=np.ascontiguousarray(np.pad(attention_mask_BT, pad)[:, :width]),
    )
