"""Text encoder of a recipe: pre-trained once for a schema, and reused from the user's cache folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tmi.toolkit.cli.console import echo
from tmi.toolkit.clinical.rendering import RENDERING_VERSIONS, Rendering
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.config.recipes import TEACHES_TEXT
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UsageError
from tmi.toolkit.models.registry import encoder_names
from tmi.toolkit.storage.atomic_files import staged_folder
from tmi.toolkit.storage.hashing import sha256_json
from tmi.toolkit.storage.outputs import output_lock
from tmi.toolkit.storage.private_files import make_private_folder, open_private
from tmi.toolkit.storage.serialization import to_json
from tmi.toolkit.storage.user_folders import cache_root

KIND = "text-encoders"
"""Folder of the encoders in the cache."""
LARGEST_WIDTH = 256
"""Width up to which an encoder is taught without being asked for: beyond it the pre-training takes hours on a CPU."""


def with_taught_text(
    config: Config,
    recipe: str,
    schema: Schema,
    given: Path | None,
    settings: list[str],
    *,
    renderings: tuple[Rendering, ...] = (),
) -> tuple[Config, Path | None]:
    """The config and the folder of the text weights: the given one, or the recipe's, which is then frozen.

    Args:
        config: settings of the run.
        recipe: name of the recipe.
        schema: clinical schema of the cohort.
        given: folder of `--text-weights`; nothing is taught then.
        settings: settings of the user, of which `train.freeze` is kept.
        renderings: renderings to teach; empty: the config's.

    Raises:
        UsageError: the encoder is too large to be taught here, or there is no cache folder.
    """
    if recipe not in TEACHES_TEXT or given is not None or "text" not in encoder_names(config):
        return config, given
    if not any(s.partition("=")[0].strip() == "train.freeze" for s in settings) and "text" not in config.train.freeze:
        config = replace(config, train=replace(config.train, freeze=(*config.train.freeze, "text")))
    return config, taught_encoder(config, schema, renderings or (config.clinical.rendering,))


def taught_encoder(
    config: Config, schema: Schema, renderings: tuple[Rendering, ...], *, steps: int | None = None
) -> Path:
    """Folder of an encoder that was taught the fields of a schema: from the cache, or pre-trained now.

    Args:
        config: sizes of the encoder and maximum length of a text.
        schema: clinical schema.
        renderings: forms of the text.
        steps: gradient steps; None: those of `tmi pretrain-text`.

    Raises:
        UsageError: the encoder is too large, there is no cache folder, or another user can write the cached encoder.
    """
    sizes = config.network.text_encoder
    root = cache_root()
    if sizes.hidden_size > LARGEST_WIDTH or root is None:
        why = "is too large to be taught on the way" if root is not None else "has no cache folder (TMI_CACHE=off)"
        raise UsageError(
            f"recipe: the text encoder of preset {config.preset} {why}",
            fix="give --text-weights with a BERT folder, or one that tmi pretrain-text wrote",
        )
    from importlib.metadata import version  # with email and zipfile, which `tmi --help` does without

    from tmi.training.cli.pretrain_text import pretrain_into
    from tmi.training.text_pretraining.pretraining import PretrainConfig

    lesson = PretrainConfig(renderings=renderings, max_length=config.clinical.max_length)
    lesson = lesson if steps is None else replace(lesson, steps=steps)
    # the dropout of a training is no property of the weights
    key = [
        schema.digest,
        to_json(replace(sizes, dropout=0.0)),
        to_json(lesson),
        [RENDERING_VERSIONS[name] for name in renderings],
        [version(package) for package in ("tmi-clnet", "torch")],
    ]
    folder = root / KIND / sha256_json(key)[:16]
    make_private_folder(folder.parent)
    with output_lock(folder, kind="encoder"):
        if folder.is_dir():
            _require_own(folder)
            echo(f"text encoder of this schema from {folder}", err=True)
            return folder
        echo(f"teaching the text encoder to read {schema.name}: some minutes, once; kept in {folder}", err=True)
        with staged_folder(folder) as staged:
            pretrain_into(staged, schema, config, lesson, checked=True)
        for path in folder.iterdir():
            path.chmod(0o600)
        folder.chmod(0o700)
    return folder


def _require_own(folder: Path) -> None:
    """Raise if another user may have written an encoder of the cache.

    Raises:
        UsageError: a file belongs to another user, or another user can write it.
    """
    try:
        for path in folder.iterdir():
            open_private(path).close()
    except OSError as error:
        raise UsageError(
            f"the taught text encoder {folder} cannot be used ({error.strerror or type(error).__name__})",
            fix="remove it, or set TMI_CACHE to a folder of your own",
        ) from error


def untaught_line(config: Config, given: Path | None) -> str | None:
    """The line that says that a text encoder starts from random weights, and how to teach it; None if it does not."""
    if given is not None or "text" not in encoder_names(config):
        return None
    return (
        "the text encoder was not taught and seldom learns to read numbers from a few hundred patients: --recipe "
        "strong teaches it first, as does tmi pretrain-text with --text-weights"
    )
