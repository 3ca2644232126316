"""A taught encoder as a folder that `--text-weights` loads: a BERT's files, and a record of what it was taught.

config.json, model.safetensors, vocab.txt   as transformers writes a BERT
clinical_schema.json                        the schema that the records were drawn from
reading.json                                renderings with their versions, lesson, figures, digest of every file
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
    """Write the folder, reading.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {theirs: getattr(pretrained.config, ours) for theirs, ours in SIZES.items()}
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
        "r2": {name: round(figure, 4) for name, figure in pretrained.r2.items()},
        "truncated": pretrained.truncated,
        "files": {name: sha256_file(folder / name) for name in ("config.json", VOCABULARY, WEIGHTS, SCHEMA_FILE)},
    }
    write_json(folder / PRETRAINING_FILE, document)
