"""The baseline pipeline: MONAI transforms, the eager float32 network and a transformers tokenizer.

For a fair comparison it has the same weights, is warm, uses threads on all cores and inference mode, and pads the text
to 512 tokens as common examples do. Both pipelines render the clinical record and read and scale the features with the
code of `tmi`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, LoadImage, Orientation, Resize, ScaleIntensityRange
from transformers import PreTrainedTokenizerFast

from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.engines.eager import EagerEngine
from tmi.toolkit.cases.case import Case
from tmi.toolkit.clinical.record import read_clinical
from tmi.toolkit.clinical.rendering import render
from tmi.toolkit.clinical.schema import stored_schema
from tmi.toolkit.compute.cpu import available_cores
from tmi.toolkit.config.schema import CtConfig
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.radiomics.table import read_table

PADDED = 512


def ct_transforms(config: CtConfig) -> Callable[[Path], torch.Tensor]:
    """Transforms from a NIfTI file to [1, D, H, W], equal to the preprocessing of `tmi`."""
    depth, height, width = config.shape_DHW
    low, high = config.window_hu
    to_low, to_high = config.scale_to
    return Compose(
        [
            LoadImage(image_only=True, ensure_channel_first=True),
            Orientation(axcodes="RAS", labels=None),
            ScaleIntensityRange(a_min=low, a_max=high, b_min=to_low, b_max=to_high, clip=True),
            Resize(spatial_size=(width, height, depth), mode="trilinear", align_corners=False),
            lambda image: image.as_tensor().permute(0, 3, 2, 1).contiguous(),
        ]
    )


class MonaiPipeline:
    """The model of a bundle in eager PyTorch; `predict` takes a case folder, `seconds` has the time of each stage."""

    def __init__(self, bundle: Path) -> None:
        opened = open_bundle(bundle)
        manifest = opened.manifest
        self._config = manifest.config
        self._schema = stored_schema(opened.folder, kind="bundle")
        self._transforms = ct_transforms(self._config.ct)
        self._folds = manifest.folds
        self._scalers = [RadiomicsScaler.load(opened.folder / fold.scaler) for fold in manifest.folds]
        files = {fold.text: opened.folder / str(manifest.graph(fold.text).tokenizer) for fold in manifest.folds}
        self._tokenizers = {name: PreTrainedTokenizerFast(tokenizer_file=str(f), pad_token="[PAD]")
                            for name, f in files.items()}  # fmt: skip
        self._classes = manifest.classes
        self._engine = EagerEngine()
        self._engine.open(opened, threads=available_cores())
        self.seconds: dict[str, float] = {}

    def predict(self, folder: Path) -> dict[str, float]:
        """Class name -> probability."""
        marks = [perf_counter()]
        case = Case(folder=folder, case_id=folder.name)
        ct = self._transforms(case.ct)[None]
        marks.append(perf_counter())
        text = render(read_clinical(case, self._schema), self._schema, self._config.clinical.rendering)
        radiomics_R = read_table(case.radiomics, case_id=case.case_id)
        radiomics = np.stack([s.transform(radiomics_R[None]).values_NF for s in self._scalers], axis=1)
        tokens = {name: t(text, padding="max_length", max_length=PADDED, truncation=True, return_tensors="pt")
                  for name, t in self._tokenizers.items()}  # fmt: skip
        marks.append(perf_counter())
        with torch.inference_mode():
            ct_features = {name: self._module(name)(ct) for name in dict.fromkeys(f.ct for f in self._folds)}
            marks.append(perf_counter())
            text_features = {
                name: self._module(name)(t["input_ids"], t["attention_mask"]) for name, t in tokens.items()
            }
            marks.append(perf_counter())
            logits = [
                fusion(ct_features[fold.ct], text_features[fold.text], torch.from_numpy(radiomics[:, f]))[0]
                for f, (fold, fusion) in enumerate(zip(self._folds, self._module("fusion"), strict=True))
            ]
            p_K = torch.stack(logits).double().softmax(-1).mean(0)[0]
        marks.append(perf_counter())
        names = ("read and prepare", "record and tokens", "ct", "text", "fusion")
        self.seconds = {name: b - a for name, a, b in zip(names, marks[:-1], marks[1:], strict=True)}
        return {name: float(p) for name, p in zip(self._classes, p_K, strict=True)}

    def _module(self, graph: str) -> Any:
        return self._engine.module(graph)

    def close(self) -> None:
        """Free the network."""
        self._engine.close()
