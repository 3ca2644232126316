"""One fold's view of the cohort: everything fitted is fitted on the fold's training cases alone.

The order of the cases in an epoch is a function of (seed, fold, epoch), so that a resumed run sees the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tmi.toolkit.config import Config
from tmi.toolkit.run_folder import FoldSplit
from tmi.toolkit.scaling import RadiomicsScaler
from tmi.toolkit.tokenizer import Tokenizer
from tmi.training.cohort_arrays import CohortArrays


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of the network's inputs. B batch, T tokens."""

    ct: Float[Tensor, "B 1 D H W"]
    """CT volumes."""
    input_ids: Int[Tensor, "B T"]
    """Token ids."""
    attention_mask: Int[Tensor, "B T"]
    """1 for a token, 0 for padding."""
    radiomics: Float[Tensor, "B 1781"]
    """Scaled features."""
    labels: Int[Tensor, " B"]
    """Class indices."""

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


class FoldData:
    """Batches of one fold's cases, scaled and tokenised by what was fitted on its training part."""

    def __init__(
        self,
        arrays: CohortArrays,
        split: FoldSplit,
        config: Config,
        *,
        tokenizer: Tokenizer | None,
        scaler: RadiomicsScaler | None = None,
    ) -> None:
        self.config = config
        self.split = split
        train = arrays.rows(split.train)
        everything = config.radiomics.fit_on == "cohort"
        self.scaler = scaler or RadiomicsScaler.fit(
            arrays.radiomics_NF[:] if everything else arrays.radiomics_NF[train], config.radiomics
        )
        self.tokenizer = tokenizer or Tokenizer.train([arrays.texts[i] for i in train], _vocab_size(config))
        self._arrays = arrays
        self._radiomics = self.scaler.transform(arrays.radiomics_NF).values_NF

    @property
    def truncated_texts(self) -> int:
        """How many of the cohort's texts are longer than the text encoder takes and lose their end."""
        return sum(self.tokenizer.encode(self._arrays.texts, max_length=self.config.clinical.max_length).truncated_B)

    def save(self, scaler: Path, tokenizer: Path) -> None:
        """Write what was fitted."""
        self.scaler.save(scaler)
        self.tokenizer.save(tokenizer)

    def batch(self, case_ids: tuple[str, ...]) -> Batch:
        """The named cases as one batch."""
        rows = self._arrays.rows(case_ids)
        clinical = self.config.clinical
        encoded = self.tokenizer.encode(
            [self._arrays.texts[i] for i in rows], max_length=clinical.max_length, pad_to_max=clinical.pad_to_max
        )
        return Batch(
            ct=torch.from_numpy(self._arrays.ct_N1DHW[rows]),
            input_ids=torch.from_numpy(encoded.input_ids_BT),
            attention_mask=torch.from_numpy(encoded.attention_mask_BT),
            radiomics=torch.from_numpy(self._radiomics[rows]),
            labels=torch.from_numpy(self._arrays.labels_N[rows]),
        )

    def labels(self, case_ids: tuple[str, ...]) -> Int[np.ndarray, " n"]:
        """Class indices of the named cases."""
        labels: np.ndarray = self._arrays.labels_N[self._arrays.rows(case_ids)]
        return labels

    def batches(self, case_ids: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Batch]]:
        """The named cases in their order, batch by batch."""
        size = self.config.train.batch_size
        for start in range(0, len(case_ids), size):
            ids = case_ids[start : start + size]
            yield ids, self.batch(ids)

    def epoch_batches(self, epoch: int) -> list[tuple[str, ...]]:
        """Case ids of each training batch of an epoch, shuffled; a last batch of one joins the one before it.

        BatchNorm cannot train on one sample, and a batch of one says nothing to the alignment loss.
        """
        train = self.config.train
        order = np.random.default_rng((train.seed, self.split.fold, epoch)).permutation(len(self.split.train))
        ids = [self.split.train[i] for i in order]
        cuts = [ids[i : i + train.batch_size] for i in range(0, len(ids), train.batch_size)]
        if len(cuts) > 1 and len(cuts[-1]) == 1:
            cuts[-2].extend(cuts.pop())
        return [tuple(cut) for cut in cuts]


def _vocab_size(config: Config) -> int:
    size = config.clinical.vocab_size
    if size is None:
        raise ValueError("no tokenizer given and none to be trained")
    return size


class EpochBatches:
    """The training batches of an epoch, in the order that (seed, fold, epoch) fixes.

    The epoch is asked for when the first batch is: Lightning makes the iterator before it starts the epoch. The length
    is there so that it does not fetch ahead either.
    """

    def __init__(self, data: FoldData, epoch: Callable[[], int]) -> None:
        self._data = data
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._data.epoch_batches(self._epoch()))

    def __iter__(self) -> Iterator[Batch]:
        for ids in self._data.epoch_batches(self._epoch()):
            yield self._data.batch(ids)
