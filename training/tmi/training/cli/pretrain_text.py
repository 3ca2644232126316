"""Command `tmi pretrain-text`: pre-train a text encoder on synthetic clinical records."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmi.toolkit.cli.completion import completes
from tmi.toolkit.cli.console import echo
from tmi.toolkit.cli.inputs import require_folder_name, require_paths
from tmi.toolkit.cli.progress import show_progress
from tmi.toolkit.clinical.rendering import RENDERING_VERSIONS
from tmi.toolkit.clinical.schema import Schema, load_schema
from tmi.toolkit.config.project import load_project
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UsageError
from tmi.toolkit.storage.atomic_files import require_absent, staged_folder
from tmi.toolkit.storage.outputs import output_lock
from tmi.training.cli.options import Preset, configure

if TYPE_CHECKING:
    from tmi.training.text_pretraining.pretraining import PretrainConfig  # torch

READABLE_R2 = 0.5
"""A field whose value explains less of its variance is named in a warning."""


def pretrain_text(
    out: Annotated[Path, typer.Option("--out", help="Folder for the encoder; tmi train --text-weights takes it.")],
    schema: Annotated[
        Path | None, typer.Option("--schema", help="Clinical schema; default: tmi.toml's, else the liver's.")
    ] = None,
    preset: Preset = None,
    rendering: Annotated[
        list[str] | None,
        typer.Option(
            "--rendering",
            help="Rendering of the records; repeatable. Default: the preset's.",
            autocompletion=completes(of="tmi.toolkit.clinical.rendering:RENDERING_VERSIONS"),
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Gradient steps.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=2, help="Records in each step.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the weights and the records.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="network.text_encoder.key=value; repeatable.")
    ] = None,
    no_memory_check: Annotated[
        bool, typer.Option("--no-memory-check", help="Pre-train even if the machine has less memory than it needs.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing folder.")] = False,
) -> None:
    """Pre-train a text encoder on synthetic clinical records, without patient data.

    Records are sampled from the ranges and choices of the schema's fields, and the encoder learns to predict their
    values. No patient data and no outcomes are used. The same command with the same number of threads (OMP_NUM_THREADS)
    writes the same weights on the same machine.

    Examples:

        tmi pretrain-text --preset tiny --out reading
        tmi pretrain-text --preset tiny --schema pbc.json --rendering values --rendering flags --out reading
    """
    project = load_project()
    config = configure(preset or project.preset, None, None, settings or [])
    require_folder_name(out, kind="encoder")
    require_paths(("--schema", schema))
    fields = load_schema(schema or project.schema_file)
    renderings = tuple(dict.fromkeys(rendering or [config.clinical.rendering]))
    unknown = sorted(set(renderings) - set(RENDERING_VERSIONS))
    if unknown:
        raise UsageError(f"unknown rendering {unknown[0]!r}", fix=f"choose from {', '.join(RENDERING_VERSIONS)}")
    with output_lock(out, kind="encoder"):
        require_absent(out, force=force, kind="encoder")
        _pretrain(out, fields, config, renderings, steps=steps, batch=batch, seed=seed, checked=not no_memory_check)


def _pretrain(
    out: Path,
    fields: Schema,
    config: Config,
    renderings: tuple[str, ...],
    *,
    steps: int | None,
    batch: int | None,
    seed: int | None,
    checked: bool,
) -> None:
    from tmi.training.pretrained.pretraining_record import PRETRAINING_FILE
    from tmi.training.text_pretraining.pretraining import PretrainConfig

    if out.is_dir() and any(out.iterdir()) and not (out / PRETRAINING_FILE).is_file():
        raise UsageError(
            f"{out} was not written by tmi pretrain-text; --force replaces only such folders",
            fix="name another folder with --out",
        )
    overrides = {"steps": steps, "batch_size": batch, "seed": seed}
    pretrain_config = PretrainConfig(
        renderings=renderings,  # type: ignore[arg-type]
        max_length=config.clinical.max_length,
        **{key: value for key, value in overrides.items() if value is not None},
    )
    with staged_folder(out) as folder:
        pretrain_into(folder, fields, config, pretrain_config, checked=checked)
    echo(f"written  {out}", f"next     tmi train COHORT --text-weights {out} --freeze text")


def pretrain_into(
    folder: Path, fields: Schema, config: Config, pretrain_config: PretrainConfig, *, checked: bool
) -> None:
    """Pre-train an encoder, write it into a folder and print what it reads.

    Args:
        folder: existing or missing folder.
        fields: clinical schema.
        config: sizes of the encoder.
        pretrain_config: settings of the pre-training.
        checked: compare the memory that a step needs with the machine's first.
    """
    from tmi.training.loop.memory_fit import require_text_memory
    from tmi.training.text_pretraining.checkpoint import write_encoder
    from tmi.training.text_pretraining.pretraining import pretrain

    with show_progress(transient=False) as progress:
        task = progress.add("pre-training", pretrain_config.steps, unit="steps", announce=True)
        pretrained = pretrain(
            fields,
            config.network.text_encoder,
            pretrain_config,
            on_start=lambda sizes, longest, targets: (
                require_text_memory(sizes, batch=pretrain_config.batch_size, length=longest, targets=targets)
                if checked
                else None
            ),
            on_step_end=lambda step, loss: task.update(step, loss=loss),
        )
    write_encoder(folder, pretrained, fields, pretrain_config)
    echo(f"R2 of each field on sampled records of {fields.name}, linear regression on the encoder's feature:")
    for name, r2 in pretrained.r2.items():
        echo(f"  {name:<28} {r2:.3f}")
    if unread := poorly_read(pretrained.r2):
        echo(
            f"warning: the encoder reads {len(unread)} of {len(pretrained.r2)} fields poorly (R2 below {READABLE_R2}): "
            f"{', '.join(unread)}",
            f"  fix: more steps (--steps {2 * pretrain_config.steps}), or a wider encoder (--set "
            f"network.text_encoder.hidden_size={2 * config.network.text_encoder.hidden_size})",
            err=True,
            level=logging.WARNING,
        )
    if pretrained.truncated:
        echo(f"{pretrained.truncated:.1%} of the texts were truncated to {pretrain_config.max_length} tokens")


def poorly_read(r2: Mapping[str, float]) -> list[str]:
    """Fields whose value explains less than `READABLE_R2` of its variance, the worst first."""
    return sorted((name for name in r2 if r2[name] < READABLE_R2), key=lambda name: r2[name])
