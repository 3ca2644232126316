"""The fold models of a run or of a bundle as `TmiClnet`s that gradients can go through, one fold in memory at a time.

A run holds whole models; a bundle holds the eager weights of its graphs (`weights/`), which are put together again. The
compiled graphs of an engine answer, but have no gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tmi.toolkit.bundle import Bundle, open_bundle
from tmi.toolkit.clinical_schema import Schema, stored_schema
from tmi.toolkit.clinical_text import require_rendering
from tmi.toolkit.config import CLASSES, POSITIVE, Config
from tmi.toolkit.errors import DamagedError, UnavailableError, UsageError
from tmi.toolkit.hashing import sha256_file
from tmi.toolkit.manifest import FUSION, FoldSpec
from tmi.toolkit.network.tmi_clnet import TmiClnet, build
from tmi.toolkit.run_folder import RUN_FILE, RunFolder
from tmi.toolkit.scaling import RadiomicsScaler
from tmi.toolkit.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class FoldModel:
    """One fold's model and what was fitted with it."""

    fold: int
    """Number of the fold."""
    network: TmiClnet
    """In evaluation mode; no weight takes a gradient."""
    scaler: RadiomicsScaler
    """Radiomics scaler."""
    tokenizer: Tokenizer
    """Tokenizer."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A run or a bundle whose models are explained."""

    kind: str
    """`run` or `bundle`."""
    folder: Path
    """Where it lies."""
    digest: str
    """SHA-256 of run.json or manifest.json."""
    config: Config
    """Settings the models were trained with."""
    schema: Schema
    """Their clinical schema."""
    folds: tuple[int, ...]
    """Fold numbers."""
    threshold: float
    """Probability of the positive class from which on the decision is `bad`."""
    synthetic: bool
    """Whether they were trained on synthetic cases."""
    load: Callable[[int], FoldModel]
    """The model of a fold; the last one asked for is kept."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index."""
        return CLASSES

    @property
    def positive(self) -> int:
        """Index of the positive class."""
        return POSITIVE

    def chosen(self, fold: str) -> tuple[int, ...]:
        """The folds that `ensemble` or a number means.

        Raises:
            UsageError: no such fold.
        """
        if fold == "ensemble":
            return self.folds
        if not fold.isascii() or not fold.isdigit() or int(fold) not in self.folds:
            raise UsageError(
                f"{self.kind} {self.folder} has no fold {fold!r}",
                fix=f"give ensemble, or one of {', '.join(map(str, self.folds))}",
            )
        return (int(fold),)


def open_run_models(folder: Path) -> ModelSource:
    """The models of a finished run, after comparing every byte of it with what its training recorded.

    Raises:
        UsageError: no run, or not finished.
        DamagedError: a file is missing, was changed, or is of another version.
    """
    run = RunFolder.open(folder).require_finished()
    require_rendering(run.config.clinical.rendering, run.rendering_version, kind="run")

    def load(fold: int) -> FoldModel:
        files = run.fold(fold)
        return FoldModel(
            fold=fold,
            network=_network(run.config, _weights(files.model), kind="run"),
            scaler=RadiomicsScaler.load(files.scaler),
            tokenizer=Tokenizer.load(files.tokenizer),
        )

    return ModelSource(
        kind="run",
        folder=folder,
        digest=sha256_file(folder / RUN_FILE),
        config=run.config,
        schema=run.schema,
        folds=tuple(split.fold for split in run.folds),
        threshold=0.5,
        synthetic=bool(run.state.get("cohort", {}).get("synthetic", False)),
        load=_keeping_the_last(load),
    )


def open_bundle_models(folder: Path) -> ModelSource:
    """The models of a bundle, after comparing every byte of it with its manifest.

    Raises:
        UsageError: no bundle.
        DamagedError: it is damaged or was edited.
        UnavailableError: it was exported without weights.
    """
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    if not bundle.has("weights"):
        raise UnavailableError(
            f"bundle {folder} holds no weights, and its compiled graphs have no gradients",
            fix="export it without --no-weights, or explain the run itself with --run",
        )
    clinical = manifest.clinical
    require_rendering(clinical.rendering, clinical.rendering_version, kind="bundle")
    config = manifest.settings()
    positions = {spec.fold: (position, spec) for position, spec in enumerate(manifest.folds)}

    def load(fold: int) -> FoldModel:
        position, spec = positions[fold]
        tokenizer = manifest.graph(spec.text).tokenizer
        if tokenizer is None:
            raise DamagedError(f"bundle {folder}: graph {spec.text} names no tokenizer", fix="export it again")
        return FoldModel(
            fold=fold,
            network=_network(config, _bundled_weights(bundle, spec, position), kind="bundle"),
            scaler=RadiomicsScaler.load(folder / spec.scaler),
            tokenizer=Tokenizer.load(folder / tokenizer),
        )

    return ModelSource(
        kind="bundle",
        folder=folder,
        digest=bundle.digest,
        config=config,
        schema=stored_schema(folder, kind="bundle"),
        folds=tuple(positions),
        threshold=manifest.threshold,
        synthetic=manifest.synthetic,
        load=_keeping_the_last(load),
    )


def _keeping_the_last(load: Callable[[int], FoldModel]) -> Callable[[int], FoldModel]:
    """At full size a fold takes 0.7 GB: two at once would be one too many, and none would be read for every step."""
    kept: dict[int, FoldModel] = {}

    def cached(fold: int) -> FoldModel:
        if fold not in kept:
            kept.clear()
            kept[fold] = load(fold)
        return kept[fold]

    return cached


def _bundled_weights(bundle: Bundle, fold: FoldSpec, position: int) -> dict[str, Tensor]:
    """A fold's whole state from the files of its three graphs."""
    state: dict[str, Tensor] = {}
    for graph, ours, theirs in (
        (fold.ct, "ct_encoder.", ""),
        (fold.text, "text_encoder.", ""),
        (FUSION, "fusion.", f"fold{position}."),
    ):
        file = bundle.artefact(bundle.manifest.graph(graph), "weights")
        assert file is not None  # the caller has seen that every graph has them
        state |= {ours + k.removeprefix(theirs): t for k, t in _weights(file).items() if k.startswith(theirs)}
    return state


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path} cannot be read as safetensors", fix="restore it from where it came") from error
    return state


def _network(config: Config, state: dict[str, Tensor], *, kind: str) -> TmiClnet:
    network = build(config.network, seed=0)
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise DamagedError(
            f"{kind}: its weights are not those of the network in its config",
            fix="use the version of tmi that made it",
        ) from error
    return network.eval().requires_grad_(False)
