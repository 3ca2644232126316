"""The three modalities of a case, and their names in documents and files.

Code names a modality by `Modality` alone. A name that a file, an option or a weight already has is translated by a
table of this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Modality = Literal["clinical", "radiomics", "image"]
"""Name of a modality in code, in `network.modalities` and in a manifest."""
MODALITIES: tuple[Modality, Modality, Modality] = ("clinical", "radiomics", "image")
"""Cyclic order of the cross-attention: each modality attends to the next, the last to the first."""
INPUT_ORDER: tuple[Modality, Modality, Modality] = ("image", "clinical", "radiomics")
"""Order of the inputs of a fusion part, as far as the network uses them."""
GraphEncoder = Literal["ct", "text"]
"""Name of an encoder that is a graph of its own."""
EncoderName = Literal["ct", "text", "radiomics"]
"""Name of an encoder."""
ENCODER_NAMES: Mapping[Modality, EncoderName] = MappingProxyType(
    {"image": "ct", "clinical": "text", "radiomics": "radiomics"}
)
"""Modality -> its encoder in `train.freeze`, in `--ct-weights` and in the weights' names (`ct_encoder.`)."""
GRAPH_NAMES: Mapping[Modality, GraphEncoder] = MappingProxyType({"image": "ct", "clinical": "text"})
"""Modality -> its encoder's role in a bundle, in the order of the fusion part's inputs. The encoder of the radiomics is
a layer of the fusion part."""
FILE_NAMES: Mapping[Modality, Literal["ct", "radiomics", "clinical"]] = MappingProxyType(
    {"image": "ct", "radiomics": "radiomics", "clinical": "clinical"}
)
"""Modality -> the name of its file in a case, which `truth.json` of a synthetic cohort uses too."""
INITIALS: Mapping[Modality, Literal["I", "R", "C"]] = MappingProxyType(
    {"image": "I", "radiomics": "R", "clinical": "C"}
)
"""Modality -> its letter in the paper's tables, in their order."""
TITLES: Mapping[Modality, Literal["vision", "text", "radiomics"]] = MappingProxyType(
    {"image": "vision", "clinical": "text", "radiomics": "radiomics"}
)
"""Modality -> its name in the paper's text, in the order of its tables."""
