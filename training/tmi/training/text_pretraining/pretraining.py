"""Teaching a text encoder to read, before it sees a patient: from drawn records' texts back to what is in them.

    drawn record -> text (the renderings of the training) -> encoder -> pooled feature -> BatchNorm -> linear reading

trained on the squared error of `reading_targets`, every record drawn anew, AdamW with a warm-up of a twentieth of the
steps and a cosine to 0, gradients clipped at a norm of 1, no dropout. The linear reading is thrown away.

Last, the feature's channels are brought to mean 0 and variance 1 over drawn records: the pooled mean over tokens hardly
differs from one record to the next beside what all share, and a LayerNorm behind it would see that alone. The mean over
tokens is linear, so this goes exactly into weight and bias of the encoder's last LayerNorm (not so for BERT's pooler,
which is left as it is).

N records, C channels, K columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tmi.toolkit.clinical.rendering import Rendering, render
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.config.schema import TextEncoderConfig
from tmi.toolkit.errors import UsageError
from tmi.toolkit.models.encoders.bert import TextEncoder
from tmi.training.text_pretraining.synthetic_records import SyntheticRecords, sample_records, to_clinical_records
from tmi.training.text_pretraining.targets import regression_targets, target_columns

PRINTABLE_CHARACTERS = " ".join(map(chr, range(33, 127)))
"""In the vocabulary whatever the schema, so that a report in free text has no unknown token."""
VOCABULARY_RECORDS = 4000
"""Drawn records that the vocabulary is made of."""
EVALUATION_RECORDS = 2000
"""Drawn records that features are standardised and the final reading fitted on; as many others judge it."""
BATCHES_PER_CHUNK = 16
"""Batches that are drawn and rendered at a time."""

StepCallback = Callable[[int, float], None]
"""Called after each step with its number and loss."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How long and how an encoder is taught."""

    renderings: tuple[Rendering, ...] = ("values",)
    """Ways of rendering, each record in one of them at random."""
    steps: int = 3000
    """Gradient steps."""
    batch_size: int = 64
    """Records a step."""
    learning_rate: float = 2e-3
    """AdamW's highest rate."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    seed: int = 42
    """Seed of weights and records."""
    max_length: int = 512
    """Longest sequence of tokens; longer texts lose their end."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size - 1) < 1 or not self.renderings:
            raise UsageError(
                f"{self.steps} steps of {self.batch_size} records", fix="give at least 1 step, 2 records, 1 rendering"
            )


@dataclass(frozen=True, kw_only=True)
class PretrainedEncoder:
    """An encoder that can read."""

    encoder: TextEncoder
    """The encoder, in evaluation mode."""
    config: TextEncoderConfig
    """Its sizes."""
    tokenizer: Tokenizer
    """Its vocabulary."""
    losses: tuple[float, ...]
    """Loss of every step."""
    r2: Mapping[str, float]
    """Field -> part of the variance (R2) of its number or word that a linear reading of the feature explains on drawn
    records that nothing was fitted on."""
    truncated: float
    """Part of the drawn texts that were longer than `max_length`."""


def pretrain(
    schema: Schema,
    config: TextEncoderConfig,
    pretrain_config: PretrainConfig,
    *,
    on_step_end: StepCallback = lambda *_: None,
) -> PretrainedEncoder:
    """An encoder of random weights, taught to read records of a schema.

    The same arguments give the same weights, bit for bit on one machine with the same number of torch's threads.
    """
    rng = np.random.default_rng(pretrain_config.seed)
    tokenizer = _train_tokenizer(rng, schema, config, pretrain_config)
    config = replace(config, vocab_size=tokenizer.vocab_size)
    what = target_columns(schema)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(pretrain_config.seed)
        encoder = TextEncoder(replace(config, dropout=0.0))
        linear_head = nn.Sequential(
            nn.BatchNorm1d(config.hidden_size, affine=False), nn.Linear(config.hidden_size, len(what.names))
        )
    encoder.bert.set_attn_implementation("sdpa")  # the same function, a third quicker here
    losses = _optimize(
        encoder, linear_head, torch.from_numpy(what.weights_K), rng, schema, tokenizer, pretrain_config, on_step_end
    )
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
    for name, kind, figure in zip(what.names, what.kinds, r2, strict=True):
        if kind != "presence":
            by_field.setdefault(name, []).append(float(figure))
    return PretrainedEncoder(
        encoder=encoder,
        config=config,
        tokenizer=tokenizer,
        losses=tuple(losses),
        r2={name: float(np.mean(figures)) for name, figures in by_field.items()},
        truncated=evaluated.truncated,
    )


def render_records(
    rng: np.random.Generator, sampled: SyntheticRecords, schema: Schema, renderings: tuple[Rendering, ...]
) -> list[str]:
    """Drawn records as texts, each in one of the renderings."""
    chosen = rng.integers(0, len(renderings), len(sampled.position_NF))
    return [render(r, schema, renderings[k]) for r, k in zip(to_clinical_records(sampled, schema), chosen, strict=True)]


def _train_tokenizer(
    rng: np.random.Generator, schema: Schema, config: TextEncoderConfig, pretrain_config: PretrainConfig
) -> Tokenizer:
    sampled = sample_records(rng, schema, VOCABULARY_RECORDS)
    return Tokenizer.train(
        [PRINTABLE_CHARACTERS, *render_records(rng, sampled, schema, pretrain_config.renderings)], config.vocab_size
    )


def _optimize(
    encoder: TextEncoder,
    linear_head: nn.Module,
    weights_K: Float[Tensor, " K"],
    rng: np.random.Generator,
    schema: Schema,
    tokenizer: Tokenizer,
    pretrain_config: PretrainConfig,
    on_step_end: StepCallback,
) -> list[float]:
    trained = [*encoder.parameters(), *linear_head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=pretrain_config.learning_rate, weight_decay=pretrain_config.weight_decay)
    warm = pretrain_config.steps // 20 + 1
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / pretrain_config.steps))
    )
    losses = []
    for step in range(pretrain_config.steps):
        place = step % BATCHES_PER_CHUNK * pretrain_config.batch_size
        if place == 0:
            sampled = sample_records(rng, schema, BATCHES_PER_CHUNK * pretrain_config.batch_size)
            written, wanted = (
                render_records(rng, sampled, schema, pretrain_config.renderings),
                regression_targets(sampled, schema),
            )
        rows = slice(place, place + pretrain_config.batch_size)
        encoded = tokenizer.encode(written[rows], max_length=pretrain_config.max_length)
        read = linear_head(encoder(torch.from_numpy(encoded.input_ids_BT), torch.from_numpy(encoded.attention_mask_BT)))
        loss = ((read - torch.from_numpy(wanted[rows])).square().mean(dim=0) * weights_K).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        on_step_end(step + 1, losses[-1])
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
    """Features of drawn records, float64."""
    written = render_records(rng, sampled, schema, pretrain_config.renderings)
    features, cut = [], 0
    with torch.no_grad():
        for start in range(0, len(written), 100):
            encoded = tokenizer.encode(written[start : start + 100], max_length=pretrain_config.max_length)
            cut += sum(encoded.truncated_B)
            ids, mask = torch.from_numpy(encoded.input_ids_BT), torch.from_numpy(encoded.attention_mask_BT)
            features.append(encoder(ids, mask).double().numpy())
    return _EvaluationSet(
        features_NC=np.concatenate(features),
        targets_NK=regression_targets(sampled, schema),
        truncated=cut / len(written),
    )


def _standardise(encoder: TextEncoder, features_NC: Float[np.ndarray, "N C"]) -> None:
    """Bring the pooled feature to mean 0 and variance 1 by the encoder's last LayerNorm."""
    norm = encoder.bert.encoder.layer[-1].output.LayerNorm
    middle, spread = (torch.from_numpy(f(features_NC, axis=0)) for f in (np.mean, np.std))
    with torch.no_grad():
        norm.weight.copy_(norm.weight.double() / spread)
        norm.bias.copy_((norm.bias.double() - middle) / spread)


def _explained_variance(fitted: _EvaluationSet, evaluated: _EvaluationSet) -> Float[np.ndarray, " K"]:
    """R2 of each column on the judged records, by the least squares of the fitted ones."""

    def design(features_NC: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N D"]:
        return np.column_stack([features_NC, np.ones(len(features_NC))])

    solution = np.linalg.lstsq(design(fitted.features_NC), fitted.targets_NK.astype(np.float64), rcond=None)[0]
    errors = evaluated.targets_NK - design(evaluated.features_NC) @ solution
    spread = evaluated.targets_NK.astype(np.float64).var(axis=0)
    explained: np.ndarray = 1.0 - errors.var(axis=0) / np.where(spread > 0.0, spread, 1.0)
    return explained
