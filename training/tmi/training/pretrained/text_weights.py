"""A BERT folder as transformers writes it, for the text encoder: `config.json`, weights, vocabulary.

Weights are `model.safetensors` or `pytorch_model.bin`, of the bare model or under a head (`bert.` before the names,
`cls.` beside them); files of the first years name LayerNorm's parameters gamma and beta. The vocabulary is read cased
(`do_lower_case=False`) whatever the folder says: BioBERT's early releases lack that setting and would be lower-cased.
Source: J. Devlin et al. 2019; J. Lee et al. 2020 (BioBERT).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.config.schema import TextEncoderConfig
from tmi.toolkit.errors import UsageError
from tmi.toolkit.models.encoders.bert import TextEncoder
from tmi.toolkit.storage.hashing import sha256_file
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
"""Keys of config.json that the text encoder has one value for; a file that lacks one means it."""
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def bert_settings(folder: Path, config: TextEncoderConfig) -> TextEncoderConfig:
    """The text encoder at the folder's sizes.

    Raises:
        UsageError: no such folder, no config.json of a BERT, or a kind of BERT that the text encoder is not.
    """
    if not folder.is_dir():
        raise UsageError(
            f"text weights {folder} are no folder",
            fix="give the folder of a BERT model with config.json, weights and vocab.txt; nothing is downloaded",
        )
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sizes = {ours: int(said[theirs]) for theirs, ours in SIZES.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder}: config.json is missing or is no BERT's", fix="give a whole BERT folder") from error
    for key, value in FIXED.items():
        if said.get(key, value) != value:
            raise UsageError(
                f"{folder}: config.json says {key}={said[key]!r}; the text encoder has {value!r}",
                fix="give a plain BERT",
            )
    return TextEncoderConfig(pooling=config.pooling, dropout=config.dropout, **sizes)


def bert_tokenizer(folder: Path) -> Tokenizer:
    """The folder's vocabulary, cased.

    Raises:
        UsageError: there is none, or it is an uncased one, by which every capital would be unknown.
    """
    if (folder / "vocab.txt").is_file():
        path = folder / "vocab.txt"
        tokens = path.read_text(encoding="utf-8", errors="replace").split("\n")
        tokenizer = Tokenizer.from_vocab(path)
    else:
        path = folder / "tokenizer.json"
        try:
            vocab = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
            tokens = sorted(vocab, key=vocab.__getitem__)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{folder} has no vocab.txt", fix="put the model's vocab.txt there, or give --vocab"
            ) from error
        tokenizer = Tokenizer.from_tokens(tokens, path)
    if not any(c.isupper() for token in tokens if not token.startswith("[") for c in token):
        raise UsageError(
            f"the vocabulary of {folder} is uncased: every capital letter would become [UNK]",
            fix="give a cased model, or its own lower-casing tokenizer.json with --vocab",
        )
    return tokenizer


def read_text_weights(folder: Path, config: TextEncoderConfig) -> tuple[dict[str, Tensor], WeightReport]:
    """Tensors for the text encoder, by its own names, and what became of the file's.

    Raises:
        UsageError: no weights there, another size of network, or nothing useful in them.
        DamagedError: the file cannot be read or is not trusted.
    """
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise UsageError(f"{folder} has neither {' nor '.join(FILES)}", fix="give a BERT folder with whole weights")
    file = read_weights(path)
    with torch.device("meta"):
        places = TextEncoder(config).state_dict()
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
    found = match_tensors(named, places, optional="", file=path.name, sizes="network.text_encoder.*")
    report = WeightReport(
        encoder="text",
        file=path.name,
        sha256=sha256_file(path),
        layout="bert",
        wrapper=file.wrapper,
        prefix=(DATA_PARALLEL_PREFIX if file.parallel else "") + ("bert." if under_head else ""),
        taken=tuple(found.state),
        adapted=adapted,
        dropped=found.dropped,
        missing=found.missing,
    )
    return dict(found.state), report
