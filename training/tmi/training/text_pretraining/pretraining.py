"""Pre-trains a text encoder on synthetic records: it learns to regress a record's values from the record's text.

    synthetic record -> text (renderings of the training) -> encoder -> pooled feature -> BatchNorm -> linear head

The loss is the weighted squared error of `regression_targets`, and the same for the tokens of each field alone
(`tmi.training.text_pretraining.field_supervision`). Every record is newly sampled. AdamW with a warm-up of a
twentieth of the steps and a cosine schedule to 0, gradients clipped at a norm of 1, no dropout. The linear head is
discarded.

Finally the channels of the pooled feature are standardised to mean 0 and variance 1 over synthetic records. The part of
the feature that all records share is much larger than its variation, and a subsequent LayerNorm would be dominated by
it. The mean over tokens is linear, so the standardisation is folded exactly into weight and bias of the encoder's last
LayerNorm. BERT's pooler is not linear, and its feature is not standardised.

N records, C channels, K columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from tmi.toolkit.clinical.rendering import Rendering, field_spans, sentences
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.config.schema import TextEncoderConfig
from tmi.toolkit.errors import UsageError
from tmi.toolkit.models.encoders.bert import TextEncoder
from tmi.training.text_pretraining.field_supervision import FieldReader, Spans, token_fields
from tmi.training.text_pretraining.synthetic_records import SyntheticRecords, sample_records, to_clinical_records
from tmi.training.text_pretraining.targets import regression_targets, target_columns

PRINTABLE_CHARACTERS = " ".join(map(chr, range(33, 127)))
"""Always in the vocabulary, so that a free-text report has no unknown token."""
VOCABULARY_RECORDS = 4000
"""Number of synthetic records from which the vocabulary is trained."""
EVALUATION_RECORDS = 2000
"""Number of records for the standardisation and the final linear fit, and number of further records for its R2."""
BATCHES_PER_CHUNK = 16
"""Number of batches sampled and rendered at a time."""

StepCallback = Callable[[int, float], None]
"""Called after each step with its number and loss."""
StartCallback = Callable[[TextEncoderConfig, int, int], None]
"""Called before the first step with the encoder's sizes, the tokens of the longest text and the number of targets."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of a pre-training."""

    renderings: tuple[Rendering, ...] = ("values",)
    """Renderings; each record uses one of them at random."""
    steps: int = 3000
    """Number of gradient steps."""
    batch_size: int = 32
    """Records in each step."""
    learning_rate: float = 4e-3
    """Peak learning rate of AdamW."""
    own_weight: float = 1.0
    """Weight of the error of each field's own tokens, relative to that of the pooled feature."""
    leak_weight: float = 8.0
    """Weight of what a field's tokens write into the columns of other fields."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    seed: int = 42
    """Seed of the weights and the records."""
    max_length: int = 512
    """Maximum number of tokens; longer texts are truncated at the end."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size - 1) < 1 or not self.renderings:
            raise UsageError(
                f"pre-training of {self.steps} steps of {self.batch_size} records in {len(self.renderings)} renderings",
                fix="give at least 1 step, 2 records, 1 rendering",
            )


@dataclass(frozen=True, kw_only=True)
class PretrainedEncoder:
    """Result of a pre-training."""

    encoder: TextEncoder
    """The encoder, in evaluation mode."""
    config: TextEncoderConfig
    """Sizes of the encoder."""
    tokenizer: Tokenizer
    """Tokenizer of the encoder."""
    losses: tuple[float, ...]
    """Loss of every step."""
    r2: Mapping[str, float]
    """Field -> R2 of a linear regression of its value on the feature, on records that nothing was fitted on."""
    truncated: float
    """Fraction of the evaluation texts that were longer than `max_length`."""


def pretrain(
    schema: Schema,
    config: TextEncoderConfig,
    pretrain_config: PretrainConfig,
    *,
    on_start: StartCallback = lambda *_: None,
    on_step_end: StepCallback = lambda *_: None,
) -> PretrainedEncoder:
    """Pre-train an encoder from random weights on synthetic records of a schema.

    The same arguments give bit-identical weights on one machine with the same number of torch threads.
    """
    rng = np.random.default_rng(pretrain_config.seed)
    tokenizer, texts = _train_tokenizer(rng, schema, config, pretrain_config)
    config = replace(config, vocab_size=tokenizer.vocab_size)
    columns = target_columns(schema)
    longest = tokenizer.encode(texts, max_length=pretrain_config.max_length).input_ids_BT.shape[1]
    on_start(config, longest, len(columns.names))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(pretrain_config.seed)
        encoder = TextEncoder(replace(config, dropout=0.0))
        linear_head = nn.Sequential(
            nn.BatchNorm1d(config.hidden_size, affine=False), nn.Linear(config.hidden_size, len(columns.names))
        )
        reader = FieldReader(config.hidden_size, schema)
    encoder.bert.set_attn_implementation("sdpa")  # the same function, a third faster here
    losses = _optimize(encoder, linear_head, reader, rng, schema, tokenizer, pretrain_config, on_step_end)
    encoder.bert.set_attn_implementation("eager")
    encoder.eval()
    fitted, evaluated = (
        _evaluation_features(
            encoder, sample_records(rng, schema, EVALUATION_RECORDS), rng, schema, tokenizer, pretrain_config
        )
        for _ in "ab"
    )
    if config.pooling != "pooler":
        _standardise(encoder, fitted.features_NC)
    r2 = _explained_variance(fitted, evaluated)
    by_field: dict[str, list[float]] = {}
    for name, kind, value in zip(columns.names, columns.kinds, r2, strict=True):
        if kind != "presence":
            by_field.setdefault(name, []).append(float(value))
    return PretrainedEncoder(
        encoder=encoder,
        config=config,
        tokenizer=tokenizer,
        losses=tuple(losses),
        r2={name: float(np.mean(values)) for name, values in by_field.items()},
        truncated=evaluated.truncated,
    )


def render_records(
    rng: np.random.Generator, sampled: SyntheticRecords, schema: Schema, renderings: tuple[Rendering, ...]
) -> list[str]:
    """Texts of sampled records, each in one of the renderings at random."""
    return [text for text, _ in _rendered(rng, sampled, schema, renderings)]


def _rendered(
    rng: np.random.Generator, sampled: SyntheticRecords, schema: Schema, renderings: tuple[Rendering, ...]
) -> list[tuple[str, Spans]]:
    """Text and field spans of each record."""
    chosen = rng.integers(0, len(renderings), len(sampled.position_NF))
    records = zip(to_clinical_records(sampled, schema), chosen, strict=True)
    pieces = [sentences(record, schema, renderings[k]) for record, k in records]
    return [(" ".join(text for _, text in row), field_spans(row)) for row in pieces]


def _train_tokenizer(
    rng: np.random.Generator, schema: Schema, config: TextEncoderConfig, pretrain_config: PretrainConfig
) -> tuple[Tokenizer, list[str]]:
    """Train the vocabulary; returns the records' texts too."""
    sampled = sample_records(rng, schema, VOCABULARY_RECORDS)
    texts = render_records(rng, sampled, schema, pretrain_config.renderings)
    return Tokenizer.train([PRINTABLE_CHARACTERS, *texts], config.vocab_size), texts


def _optimize(
    encoder: TextEncoder,
    linear_head: nn.Module,
    reader: FieldReader,
    rng: np.random.Generator,
    schema: Schema,
    tokenizer: Tokenizer,
    pretrain_config: PretrainConfig,
    on_step_end: StepCallback,
) -> list[float]:
    """Train encoder and heads; returns the loss of the pooled feature in every step."""
    hidden: list[torch.Tensor] = []
    hook = encoder.bert.register_forward_hook(lambda module, args, output: hidden.append(output.last_hidden_state))
    weights_K = torch.from_numpy(target_columns(schema).weights_K)
    parameters = [*encoder.parameters(), *linear_head.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=pretrain_config.learning_rate, weight_decay=pretrain_config.weight_decay
    )
    warmup = pretrain_config.steps // 20 + 1
    # the smaller of a linear warm-up and a half cosine over all steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / pretrain_config.steps))
    )
    losses = []
    for step in range(pretrain_config.steps):
        start = step % BATCHES_PER_CHUNK * pretrain_config.batch_size
        if start == 0:
            sampled = sample_records(rng, schema, BATCHES_PER_CHUNK * pretrain_config.batch_size)
            rendered = _rendered(rng, sampled, schema, pretrain_config.renderings)
            targets_NK = regression_targets(sampled, schema)
        rows = slice(start, start + pretrain_config.batch_size)
        texts, spans = zip(*rendered[rows], strict=True)
        encoded = tokenizer.encode(texts, max_length=pretrain_config.max_length)
        predicted_BK = linear_head(
            encoder(torch.from_numpy(encoded.input_ids_BT), torch.from_numpy(encoded.attention_mask_BT))
        )
        targets_BK = torch.from_numpy(targets_NK[rows])
        pooled = ((predicted_BK - targets_BK).square().mean(dim=0) * weights_K).sum()
        fields_BT = token_fields(texts, spans, schema, tokenizer, max_length=pretrain_config.max_length)
        present_BF = torch.from_numpy(sampled.present_NF[rows])
        own, leak = reader(hidden.pop(), torch.from_numpy(fields_BT), targets_BK, present_BF)
        loss = pooled + pretrain_config.own_weight * own + pretrain_config.leak_weight * leak
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(pooled.detach()))
        on_step_end(step + 1, losses[-1])
    hook.remove()
    return losses


@dataclass(frozen=True, kw_only=True)
class _EvaluationSet:
    features_NC: Float[np.ndarray, "N C"]
    targets_NK: Float[np.ndarray, "N K"]
    truncated: float


def _evaluation_features(
    encoder: TextEncoder,
    sampled: SyntheticRecords,
    rng: np.random.Generator,
    schema: Schema,
    tokenizer: Tokenizer,
    pretrain_config: PretrainConfig,
) -> _EvaluationSet:
    """Features (float64) and targets of sampled records."""
    texts = render_records(rng, sampled, schema, pretrain_config.renderings)
    features, truncated = [], 0
    with torch.no_grad():
        for start in range(0, len(texts), 100):
            encoded = tokenizer.encode(texts[start : start + 100], max_length=pretrain_config.max_length)
            truncated += sum(encoded.truncated_B)
            ids, mask = torch.from_numpy(encoded.input_ids_BT), torch.from_numpy(encoded.attention_mask_BT)
            features.append(encoder(ids, mask).double().numpy())
    return _EvaluationSet(
        features_NC=np.concatenate(features),
        targets_NK=regression_targets(sampled, schema),
        truncated=truncated / len(texts),
    )


def _standardise(encoder: TextEncoder, features_NC: Float[np.ndarray, "N C"]) -> None:
    """Standardise the pooled feature to mean 0 and variance 1 through the encoder's last LayerNorm."""
    norm = encoder.bert.encoder.layer[-1].output.LayerNorm
    mean_C, std_C = (torch.from_numpy(f(features_NC, axis=0)) for f in (np.mean, np.std))
    with torch.no_grad():
        norm.weight.copy_(norm.weight.double() / std_C)
        norm.bias.copy_((norm.bias.double() - mean_C) / std_C)


def _explained_variance(fitted: _EvaluationSet, evaluated: _EvaluationSet) -> Float[np.ndarray, " K"]:
    """R2 of each column on `evaluated`, by least squares with an intercept fitted on `fitted`."""

    def design(features_NC: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N D"]:
        return np.column_stack([features_NC, np.ones(len(features_NC))])

    solution = np.linalg.lstsq(design(fitted.features_NC), fitted.targets_NK.astype(np.float64), rcond=None)[0]
    errors = evaluated.targets_NK - design(evaluated.features_NC) @ solution
    variance_K = evaluated.targets_NK.astype(np.float64).var(axis=0)
    r2_K: np.ndarray = 1.0 - errors.var(axis=0) / np.where(variance_K > 0.0, variance_K, 1.0)
    return r2_K
