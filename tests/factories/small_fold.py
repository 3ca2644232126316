"""A fold of thirteen random cases and a small network that trains in a fraction of a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tmi.toolkit.cases.case import Case
from tmi.toolkit.config.schema import Config
from tmi.toolkit.run_folder import FoldFolder, FoldSplit
from tmi.training.data.dataset import CohortArrays

IDS = tuple(f"C{i:02d}" for i in range(13))
SPLIT = FoldSplit(fold=1, train=IDS[:5], validation=IDS[5:9], test=IDS[9:])
SHAPE = (8, 16, 16)


def small_config(micro_config: Config) -> Config:
    """The micro config with smaller layers and a smaller volume."""
    network = replace(
        micro_config.network,
        ct_encoder=replace(micro_config.network.ct_encoder, planes=(4, 4, 4, 4)),
        text_encoder=replace(
            micro_config.network.text_encoder, hidden_size=16, layers=1, heads=2, intermediate_size=16, vocab_size=200
        ),
        radiomics_encoder=replace(micro_config.network.radiomics_encoder, hidden=8, out=8),
        fusion=replace(micro_config.network.fusion, width=16, ima_heads=2),
        head=replace(micro_config.network.head, blocks=(1, 1), growth=4, init_features=4),
    )
    return replace(
        micro_config,
        ct=replace(micro_config.ct, shape_DHW=SHAPE),
        clinical=replace(micro_config.clinical, vocab_size=200),
        network=network,
        train=replace(micro_config.train, epochs=4, learning_rate=3e-3),
    )


def make_arrays() -> CohortArrays:
    """Random cases with a fixed seed."""
    random = np.random.default_rng(3)
    return CohortArrays(
        cases=tuple(Case(folder=Path(i), case_id=i, patient_id=i, label=k % 2) for k, i in enumerate(IDS)),
        ct_N1DHW=random.uniform(0, 1, (len(IDS), 1, *SHAPE)).astype(np.float32),
        radiomics_NF=random.normal(0, 10, (len(IDS), 1781)),
        texts=tuple(f"Albumin: {30 + k} g/L. Word{k}word." for k in range(len(IDS))),
        numbers_NV=random.normal(0, 1, (len(IDS), 3)),
        labels_N=np.arange(len(IDS), dtype=np.int64) % 2,
        rejected=(),
    )


def train_small(
    folder: Path, arrays: CohortArrays, config: Config, split: FoldSplit = SPLIT, **more: object
) -> FoldFolder:
    """Train the fold in a new folder; `more` are fields of `FoldContext` and options of `train_fold`."""
    from tmi.training.loop.fold_training import train_fold
    from tmi.training.loop.hardware import HardwareConfig
    from tmi.training.loop.run_spec import FoldContext

    files = FoldFolder(folder=folder, fold=split.fold)
    folder.mkdir(parents=True)
    fields = {"tokenizer": None, "hardware": HardwareConfig(accelerator="cpu")} | more
    options = {key: fields.pop(key) for key in ("epoch_callback", "step_callback", "features") if key in fields}
    context = FoldContext(arrays=arrays, config=config, **fields)  # type: ignore[arg-type]
    train_fold(context, split, files, **{"epoch_callback": lambda *_: None, **options})  # type: ignore[arg-type]
    return files
