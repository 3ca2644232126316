"""Writes a pre-trained text encoder as a folder that `--text-weights` loads.

config.json, model.safetensors, vocab.txt   a BERT in the layout of transformers
clinical_schema.json                        schema of the synthetic records
reading.json                                renderings with versions, pre-training config, R2, digest of every file
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from tmi.toolkit.clinical.rendering import RENDERING_VERSIONS
from tmi.toolkit.clinical.schema import SCHEMA_FILE, Schema, store_schema
from tmi.toolkit.storage.atomic_files import write_json, write_text
from tmi.toolkit.storage.hashing import sha256_file
from tmi.toolkit.storage.serialization import to_json
from tmi.training.pretrained.pretraining_record import DOCUMENT_SCHEMA, PRETRAINING_FILE, VOCABULARY, WEIGHTS
from tmi.training.pretrained.text_weights import FIXED, SIZES
from tmi.training.text_pretraining.pretraining import PretrainConfig, PretrainedEncoder


def write_encoder(folder: Path, pretrained: PretrainedEncoder, schema: Schema, pretrain_config: PretrainConfig) -> None:
    """Write the folder; reading.json comes last because it holds the digests of the other files."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {key: getattr(pretrained.config, name) for key, name in SIZES.items()}
    write_json(folder / "config.json", {**FIXED, **sizes, "architectures": ["BertModel"]})
    write_text(folder / VOCABULARY, "\n".join(pretrained.tokenizer.tokens) + "\n")
    state = {name: tensor.contiguous() for name, tensor in pretrained.encoder.bert.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    store_schema(folder, schema)
    document = {
        "schema": DOCUMENT_SCHEMA,
        "clinical_schema": {"name": schema.name, "version": schema.version, "digest": schema.digest},
        "renderings": {name: RENDERING_VERSIONS[name] for name in pretrain_config.renderings},
        "pooling": pretrained.config.pooling,
        "lesson": to_json(pretrain_config),
        "r2": {name: round(r2, 4) for name, r2 in pretrained.r2.items()},
        "truncated": pretrained.truncated,
        "files": {name: sha256_file(folder / name) for name in ("config.json", VOCABULARY, WEIGHTS, SCHEMA_FILE)},
    }
    write_json(folder / PRETRAINING_FILE, document)
