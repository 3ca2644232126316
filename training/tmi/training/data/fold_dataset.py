"""Batches of one fold; radiomics scaler and tokenizer are fitted on the fold's training cases alone.

The order of the cases in an epoch depends on (seed, fold, epoch) alone, so a resumed run trains on the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tmi.toolkit.clinical.tokenizer import MIN_PATIENTS, Tokenizer
from tmi.toolkit.config.schema import Config
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.run_folder import FoldSplit
from tmi.training.data.augmentation import AugmentationParams, apply_augmentation, sample_augmentation
from tmi.training.data.dataset import CohortArrays
from tmi.training.data.splits import patient_key

NO_ANONYMITY = 0
"""`min_patients` of runs of earlier versions: every word that occurs twice, reports included, could become a token."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs of the network for one batch. B batch, T tokens, C features."""

    ct: Float[Tensor, "B 1 D H W"] | Float[Tensor, "B C"]
    """CT volumes, or their features from a frozen encoder."""
    input_ids: Int[Tensor, "B T"] | Float[Tensor, "B C"]
    """Token ids, or the text features from a frozen encoder."""
    attention_mask: Int[Tensor, "B T"]
    """1 for a token, 0 for padding."""
    radiomics: Float[Tensor, "B 1781"]
    """Scaled features."""
    labels: Int[Tensor, " B"]
    """Class indices."""

    def to(self, device: torch.device) -> Batch:
        """Move the batch to a device."""
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


class FoldDataset:
    """Batches of one fold, scaled and tokenised with the scaler and tokenizer of its training part.

    Args:
        arrays: the cohort; another one than the fold's if scaler and tokenizer are given.
        split: the fold.
        config: settings of the run.
        tokenizer: trained tokenizer; None trains one on the fold's training part.
        scaler: fitted scaler; None fits one on the fold's training part.
    """

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
        self.scaler = scaler or _fitted_scaler(arrays, split, config)
        self.tokenizer = tokenizer or train_vocabulary(arrays, split.train, _vocab_size(config))
        self.features: dict[str, Mapping[int, np.ndarray]] = {}
        """Encoder (`ct`, `text`) -> row -> output of the frozen encoder, which then replaces the input."""
        self._arrays = arrays
        self._radiomics = self.scaler.transform(arrays.radiomics_NF).values_NF

    @property
    def truncated_texts(self) -> int:
        """Number of the cohort's texts that are truncated to the maximum length of the text encoder."""
        return sum(self.tokenizer.encode(self._arrays.texts, max_length=self.config.clinical.max_length).truncated_B)

    def save(self, scaler: Path, tokenizer: Path) -> None:
        """Write the scaler and the tokenizer."""
        self.scaler.save(scaler)
        self.tokenizer.save(tokenizer)

    def rows(self, case_ids: tuple[str, ...]) -> Int[np.ndarray, " n"]:
        """Row indices of the named cases in the cohort."""
        return self._arrays.rows(case_ids)

    def tokens(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask of some rows, padded to the longest of them."""
        clinical = self.config.clinical
        encoded = self.tokenizer.encode(
            [self._arrays.texts[i] for i in rows], max_length=clinical.max_length, pad_to_max=clinical.pad_to_max
        )
        return torch.from_numpy(encoded.input_ids_BT), torch.from_numpy(encoded.attention_mask_BT)

    def volumes(self, rows: Sequence[int]) -> Float[Tensor, "n 1 D H W"]:
        """CT volumes of some rows."""
        return torch.from_numpy(self._arrays.ct_N1DHW[np.asarray(rows)])

    def augmentation_params(self, case_id: str, epoch: int) -> AugmentationParams:
        """Augmentation parameters of a case in an epoch."""
        train = self.config.train
        return sample_augmentation(
            self.config.augmentation, seed=train.seed, fold=self.split.fold, epoch=epoch, case_id=case_id
        )

    def batch(self, case_ids: tuple[str, ...], *, epoch: int | None = None) -> Batch:
        """The named cases as one batch, augmented if `epoch` is given and the config augments."""
        rows = [int(row) for row in self._arrays.rows(case_ids)]
        ids, mask = self.tokens(rows)
        if "text" in self.features:
            ids = self._encoder_input("text", rows)
        if "ct" in self.features:
            ct = self._encoder_input("ct", rows)
        elif epoch is None or not self.config.augmentation.active:
            ct = self.volumes(rows)
        else:
            window = self.config.ct.scale_to
            ct = torch.from_numpy(
                np.stack(
                    [
                        apply_augmentation(
                            self._arrays.ct_N1DHW[row], self.augmentation_params(case_id, epoch), window=window
                        )
                        for row, case_id in zip(rows, case_ids, strict=True)
                    ]
                )
            )
        return Batch(
            ct=ct,
            input_ids=ids,
            attention_mask=mask,
            radiomics=torch.from_numpy(self._radiomics[rows]),
            labels=torch.from_numpy(self._arrays.labels_N[rows]),
        )

    def _encoder_input(self, name: str, rows: Sequence[int]) -> Float[Tensor, "B C"]:
        return torch.from_numpy(np.stack([self.features[name][row] for row in rows]))

    def labels(self, case_ids: tuple[str, ...]) -> Int[np.ndarray, " n"]:
        """Class indices of the named cases."""
        labels: np.ndarray = self._arrays.labels_N[self._arrays.rows(case_ids)]
        return labels

    def batches(self, case_ids: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Batch]]:
        """Yield the named cases in the given order, batch by batch."""
        size = self.config.train.batch_size
        for start in range(0, len(case_ids), size):
            ids = case_ids[start : start + size]
            yield ids, self.batch(ids)

    def epoch_batches(self, epoch: int, *, min_cases: int = 2) -> list[tuple[str, ...]]:
        """Case ids of each training batch of an epoch, shuffled.

        A last batch of fewer than `min_cases` is merged into the one before: BatchNorm cannot train on one sample, and
        the alignment loss of one sample is 0.
        """
        train = self.config.train
        order = np.random.default_rng((train.seed, self.split.fold, epoch)).permutation(len(self.split.train))
        ids = [self.split.train[i] for i in order]
        batches = [ids[i : i + train.batch_size] for i in range(0, len(ids), train.batch_size)]
        if len(batches) > 1 and len(batches[-1]) < min_cases:
            batches[-2].extend(batches.pop())
        return [tuple(batch) for batch in batches]


def _fitted_scaler(arrays: CohortArrays, split: FoldSplit, config: Config) -> RadiomicsScaler:
    # "cohort" reproduces the released code and leaks held-out cases into the scaler
    rows = slice(None) if config.radiomics.fit_on == "cohort" else arrays.rows(split.train)
    return RadiomicsScaler.fit(arrays.radiomics_NF[rows], config.radiomics)


def train_vocabulary(
    arrays: CohortArrays, case_ids: Sequence[str], vocab_size: int, *, min_patients: int = MIN_PATIENTS
) -> Tokenizer:
    """Vocabulary trained on the texts of the named cases.

    Args:
        arrays: the cohort.
        case_ids: the cases to train on.
        vocab_size: maximum number of tokens.
        min_patients: patients whose reports must contain a word before it becomes a token; 0 treats reports as records
            (`NO_ANONYMITY`).
    """
    rows = arrays.rows(case_ids)
    texts = [arrays.texts[i] for i in rows]
    if min_patients == NO_ANONYMITY or not arrays.reports:
        return Tokenizer.train(texts, vocab_size)
    reports: dict[str, list[str]] = {}
    for i in rows:
        case = arrays.cases[i]
        reports.setdefault(patient_key(case.patient_id or case.case_id), []).append(arrays.reports[i])
    records = [text.removesuffix(arrays.reports[i]) for i, text in zip(rows, texts, strict=True)]
    return Tokenizer.train(records, vocab_size, reports=reports, min_patients=min_patients)


def _vocab_size(config: Config) -> int:
    size = config.clinical.vocab_size
    if size is None:
        raise ValueError("no tokenizer is given, and clinical.vocab_size is None, so none can be trained")
    return size


class EpochBatches:
    """Iterable over the training batches of an epoch; in a distributed run over one process's share of every batch.

    `epoch` is called with the first batch, because Lightning creates the iterator before it starts the epoch. The
    length is defined so that Lightning does not prefetch a batch.
    """

    def __init__(
        self, data: FoldDataset, epoch: Callable[[], int], *, rank: int = 0, world_size: int = 1, min_cases: int = 2
    ) -> None:
        self._data = data
        self._epoch = epoch
        self._rank, self._world, self._min_cases = rank, world_size, min_cases

    def __len__(self) -> int:
        return len(self._data.epoch_batches(self._epoch(), min_cases=self._min_cases))

    def __iter__(self) -> Iterator[Batch]:
        epoch = self._epoch()
        for ids in self._data.epoch_batches(epoch, min_cases=self._min_cases):
            yield self._data.batch(ids[self._rank :: self._world], epoch=epoch)
