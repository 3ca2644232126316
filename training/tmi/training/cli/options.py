"""Options shared by `tmi train` and `tmi compare`, and the config built from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tmi.toolkit.cli.completion import completes
from tmi.toolkit.cli.console import echo
from tmi.toolkit.clinical.schema import Schema, find_schema
from tmi.toolkit.config.overrides import override
from tmi.toolkit.config.presets import preset as find_preset
from tmi.toolkit.config.project import Project
from tmi.toolkit.config.recipes import DEFAULT_RECIPE, recipe_settings
from tmi.toolkit.config.schema import Config
from tmi.toolkit.model_registry import model_spec

if TYPE_CHECKING:
    from tmi.toolkit.clinical.tokenizer import Tokenizer
    from tmi.training.pretrained.initial_weights import Initialization  # torch

CohortFolder = Annotated[Path | None, typer.Argument(help="Cohort folder; default: ./cohort or tmi.toml.")]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset", help="paper, released or tiny.", autocompletion=completes(of="tmi.toolkit.config.presets:PRESETS")
    ),
]
Recipe = Annotated[
    str,
    typer.Option(
        "--recipe",
        help="paper, or strong (experimental).",
        autocompletion=completes(of="tmi.toolkit.config.recipes:RECIPES"),
    ),
]
Folds = Annotated[int | None, typer.Option("--folds", help="Folds of the cross-validation.")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Epochs of each fold.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="section.key=value; repeatable.")]
CtWeights = Annotated[
    Path | None, typer.Option("--ct-weights", help="3D ResNet weights (Hara, MedicalNet) for the CT encoder.")
]
TextWeights = Annotated[
    Path | None, typer.Option("--text-weights", help="Folder of a BERT model: weights, sizes and vocabulary.")
]
Vocab = Annotated[Path | None, typer.Option("--vocab", help="BERT vocab.txt, or a tokenizer.json.")]
SchemaFile = Annotated[
    Path | None,
    typer.Option("--schema", help="Clinical schema; default: the cohort's, else tmi.toml's, else the liver's."),
]
MaskLabel = Annotated[
    list[str] | None,
    typer.Option("--mask-label", metavar="N[,N]", help="Label of the liver in the masks; several are joined."),
]
Freeze = Annotated[
    str | None, typer.Option("--freeze", help="ct, text, radiomics, ct:layer2, text:8, ...; comma-separated.")
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision", help="32, bf16-mixed or 16-mixed.", autocompletion=completes("32", "bf16-mixed", "16-mixed")
    ),
]
Accelerator = Annotated[
    str,
    typer.Option(
        "--accelerator",
        help="cpu, gpu or auto.",
        autocompletion=completes(of="tmi.training.loop.hardware:ACCELERATORS"),
    ),
]
Devices = Annotated[int, typer.Option("--devices", help="Devices of this machine for each fold.")]
ParallelFolds = Annotated[
    int, typer.Option("--parallel-folds", help="Folds trained at the same time, each on one device.")
]
NoMemoryCheck = Annotated[
    bool, typer.Option("--no-memory-check", help="Train even if the machine has less memory than --plan computes.")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Prepare every case again and cache nothing.")]


def weight_paths(
    ct: Path | None, text: Path | None, vocab: Path | None, schema: Path | None
) -> tuple[tuple[str, Path | None], ...]:
    """Return the options that name a file or folder to read, for `require_paths`."""
    return ("--ct-weights", ct), ("--text-weights", text), ("--vocab", vocab), ("--schema", schema)


def cohort_schema(given: Path | None, project: Project, cohort: Path) -> Schema:
    """Return the clinical schema of a cohort: that of `--schema`, its own, the project's, or the packaged one.

    Raises:
        UsageError: the file is malformed.
    """
    schema, note = find_schema(given, project.schema_file, [cohort])
    if note is not None:
        echo(note, err=True)
    return schema


def configure(
    preset_name: str,
    folds: int | None,
    epochs: int | None,
    settings: list[str],
    *,
    model: str | None = None,
    freeze: str | None = None,
    precision: str | None = None,
    recipe: str = DEFAULT_RECIPE,
) -> Config:
    """Apply the recipe and the command line options to a preset; `--set` takes precedence.

    Raises:
        UsageError: unknown preset, recipe, model or setting.
    """
    config = find_preset(preset_name)
    settings = [*recipe_settings(recipe), *_as_settings(freeze, precision), *settings]
    if model is not None:
        model_spec(model)  # its error lists the known models
        settings = [*settings, f"system.name={model}"]
    if folds is not None:
        config = replace(config, train=replace(config.train, folds=folds))
    if epochs is not None:
        config = replace(config, train=replace(config.train, epochs=epochs))
    return override(config, settings)


def memory_mode(settings: list[str], *, unchecked: bool) -> Literal["fit", "as-set", "unchecked"]:
    """Value of `HardwareConfig.memory`; a given setting of activation checkpointing is never replaced."""
    given = any(s.partition("=")[0].strip() == "train.activation_checkpointing" for s in settings)
    return "unchecked" if unchecked else "as-set" if given else "fit"


def _as_settings(freeze: str | None, precision: str | None) -> list[str]:
    """Convert --freeze and --precision to `--set` assignments."""
    parts = None if freeze is None else [part.strip() for part in freeze.split(",") if part.strip()]
    return [
        *([] if parts is None else [f"train.freeze={json.dumps(parts)}"]),
        *([] if precision is None else [f"train.precision={json.dumps(precision)}"]),
    ]


def resolve_initialization(
    config: Config, settings: list[str], *, ct: Path | None, text: Path | None, vocab: Path | None, schema: Schema
) -> tuple[Config, Initialization | None]:
    """Read the given weights and adapt the config to them and to the vocabulary.

    Returns:
        The config, and the weights; None if none are given.

    Raises:
        UsageError: a file does not fit the config.
        DamagedError: a file cannot be read or is not trusted.
    """
    initialization = None
    if ct is not None or text is not None:
        from tmi.training.pretrained.initial_weights import prepare_initialization

        explicit = tuple(s.partition("=")[0].strip() for s in settings)
        initialization = prepare_initialization(config, ct=ct, text=text, chosen=explicit, schema=schema)
        config = initialization.config
    if vocab is None and (initialization is None or initialization.tokenizer is None):
        return with_own_vocabulary(config), initialization
    if config.clinical.vocab_size is not None:  # a size in the config means that the vocabulary is fitted on the cohort
        config = replace(config, clinical=replace(config.clinical, vocab_size=None))
    return config, initialization


def read_given_vocabulary(
    vocab: Path | None, initialization: Initialization | None
) -> tuple[Tokenizer | None, Mapping[str, Any] | None]:
    """The tokenizer of `--vocab`, else of `--text-weights`, and its record for the run; None without either."""
    if vocab is None:
        return (None, None) if initialization is None else (initialization.tokenizer, initialization.vocabulary)
    from tmi.toolkit.clinical.tokenizer import Tokenizer
    from tmi.training.pretrained.origin import vocabulary_record

    tokenizer = Tokenizer.read(vocab)
    return tokenizer, vocabulary_record(tokenizer, vocab)


def print_initialization(initialization: Initialization | None) -> None:
    """Print which weights are read from files and which are random."""
    if initialization is None:
        echo("no pre-trained weights given: every encoder starts from random weights", err=True)
        return
    for line in (*initialization.notes, *(report.summary() for report in initialization.weights.reports)):
        echo(line, err=True)
    random = [name for name in ("ct", "text") if name not in initialization.weights.states]
    echo(f"random weights: the {', '.join([*random, 'radiomics'])} encoder(s), interaction and head", err=True)


def with_own_vocabulary(config: Config) -> Config:
    """Config for a run without a given vocabulary: every fold trains one on its training texts.

    Encoders start from random weights, so no other vocabulary fits them better than the cohort's own words.
    """
    if config.clinical.vocab_size is not None:
        return config
    rows = config.network.text_encoder.vocab_size
    echo(f"no --vocab given: every fold trains a vocabulary of at most {rows} tokens on its training texts", err=True)
    return replace(config, clinical=replace(config.clinical, vocab_size=rows))
