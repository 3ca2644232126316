"""Loads a BERT folder in the layout of transformers into the text encoder: `config.json`, weights, vocabulary.

Weights are `model.safetensors` or `pytorch_model.bin`, of the bare model or of a model with a head (prefix `bert.`, and
`cls.` for the head). Early files name LayerNorm's parameters gamma and beta. The vocabulary is always read as cased
(`do_lower_case=False`): BioBERT's early releases lack that setting and would otherwise be lower-cased.
Source: J. Devlin et al. 2019; J. Lee et al. 2020 (BioBERT).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.config.schema import TextEncoderConfig
from tmi.toolkit.errors import UsageError
from tmi.toolkit.models.encoders.bert import TextEncoder
from tmi.toolkit.storage.bounded_files import DOCUMENT_BYTES, RECORD_BYTES
from tmi.toolkit.storage.documents import read_document
from tmi.toolkit.storage.hashing import sha256_file
from tmi.training.pretrained.origin import file_origin
from tmi.training.pretrained.weight_file import DATA_PARALLEL_PREFIX, read_weights
from tmi.training.pretrained.weight_report import WeightReport, match_tensors

FILES = ("model.safetensors", "pytorch_model.bin")
SIZES = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
}
"""Key of config.json -> field of `TextEncoderConfig`."""
FIXED: Mapping[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
"""Keys of config.json for which the text encoder supports one value, which is also the default of a missing key."""
MAX_LAYERS = 256
"""Largest number of layers that is accepted."""
MAX_SIZE = 2**20
"""Largest width, number of heads or of tokens that is accepted."""
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def bert_settings(folder: Path, config: TextEncoderConfig) -> TextEncoderConfig:
    """The text encoder config with the folder's sizes.

    Raises:
        UsageError: the folder or its config.json is missing, or the architecture is not supported.
    """
    if not folder.is_dir():
        raise UsageError(
            f"text weights {folder} are not a folder",
            fix="give the folder of a BERT model with config.json, weights and vocab.txt; nothing is downloaded",
        )
    try:
        document = read_document(folder / "config.json", max_bytes=RECORD_BYTES)
        sizes = {name: int(document[key]) for key, name in SIZES.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder}: config.json is missing or is not that of a BERT", fix="give a complete BERT folder"
        ) from error
    for key, name in SIZES.items():
        if not 1 <= sizes[name] <= (MAX_LAYERS if name == "layers" else MAX_SIZE):
            raise UsageError(f"{folder}: config.json has an impossible {key}", fix="give a standard BERT")
    for key, value in FIXED.items():
        if document.get(key, value) != value:
            raise UsageError(
                f"{folder}: config.json has {key}={document[key]!r}; the text encoder supports only {value!r}",
                fix="give a standard BERT",
            )
    return TextEncoderConfig(pooling=config.pooling, dropout=config.dropout, **sizes)


def bert_tokenizer(folder: Path) -> Tokenizer:
    """The folder's vocabulary as a cased tokenizer.

    Raises:
        UsageError: the vocabulary is missing, or it is uncased, so every capital letter would be unknown.
    """
    if (folder / "vocab.txt").is_file():
        path = folder / "vocab.txt"
        tokenizer = Tokenizer.from_vocab(path)
        tokens = list(tokenizer.tokens)
    else:
        path = folder / "tokenizer.json"
        try:
            vocab = read_document(path, max_bytes=DOCUMENT_BYTES)["model"]["vocab"]
            tokens = sorted(vocab, key=vocab.__getitem__)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{folder} has no vocab.txt", fix="add the model's vocab.txt to the folder, or give --vocab"
            ) from error
        tokenizer = Tokenizer.from_tokens(tokens, path)
    if not any(c.isupper() for token in tokens if not token.startswith("[") for c in token):
        raise UsageError(
            f"the vocabulary of {folder} is uncased: every capital letter would become [UNK]",
            fix="give a cased model, or the model's own lower-casing tokenizer.json with --vocab",
        )
    return tokenizer


def read_text_weights(folder: Path, config: TextEncoderConfig) -> tuple[dict[str, Tensor], WeightReport]:
    """Read the tensors of the text encoder, by the encoder's names, and a report of the file's tensors.

    Raises:
        UsageError: the folder has no weights, or they are of a network of another size or match too few tensors.
        DamagedError: the file cannot be read or is not trusted.
    """
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise UsageError(f"{folder} has neither {' nor '.join(FILES)}", fix="give a BERT folder with its weights")
    file = read_weights(path)
    with torch.device("meta"):
        parameters = TextEncoder(config).state_dict()
    under_head = any(name.startswith("bert.") for name in file.tensors)
    adapted: dict[str, str] = {}
    named: dict[str, tuple[str, Tensor]] = {}
    for original, tensor in file.tensors.items():
        if under_head and not original.startswith("bert."):
            named[f"head.{original}"] = (original, tensor)
            continue
        name = f"bert.{original.removeprefix('bert.')}"
        for old, new in OLD_NAMES.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
                adapted[name] = f"renamed from {old.rpartition('.')[2]}"
        named[name] = (original, tensor)
    matched = match_tensors(named, parameters, optional="", file=path.name, sizes="network.text_encoder.*")
    report = WeightReport(
        encoder="text",
        file=path.name,
        sha256=sha256_file(path),
        layout="bert",
        wrapper=file.wrapper,
        prefix=(DATA_PARALLEL_PREFIX if file.parallel else "") + ("bert." if under_head else ""),
        taken=tuple(matched.state),
        adapted=adapted,
        dropped=matched.dropped,
        missing=matched.missing,
        origin=file_origin(folder),
    )
    return dict(matched.state), report
