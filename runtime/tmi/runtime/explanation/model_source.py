"""Fold models of a run or bundle as networks with gradients; large ones are in memory one at a time.

A run stores complete models. A bundle stores the eager weights of its graphs (`weights/`), which are reassembled here;
the compiled graphs of an engine have no gradients. Outputs of both are calibrated: a bundle's weights include the
folds' temperatures, a run's logits are divided by them here. A run that uses the CT alone can serve as CT-only
baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from torch import Tensor

from tmi.runtime.bundle.contents import bundled_scaler, bundled_schema, bundled_tokenizer
from tmi.runtime.bundle.manifest import FUSION, FoldSpec
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.bundle.signing import Keys, open_trusted_bundle
from tmi.runtime.serving.startup import open_selected_engine
from tmi.runtime.serving.trust import TrustAssessor
from tmi.runtime.verification.self_test import LogCallback, cached_result
from tmi.toolkit.clinical.rendering import require_rendering
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.config.schema import CLASSES, MODALITIES, POSITIVE, Config
from tmi.toolkit.errors import DamagedError, UnavailableError, UsageError
from tmi.toolkit.models.factory import create_network
from tmi.toolkit.models.multimodal import MultimodalNetwork
from tmi.toolkit.models.registry import active_modalities, apply_temperature, configured_model
from tmi.toolkit.models.tmi_clnet.model import TmiClnet
from tmi.toolkit.models.weights import create_with_weights
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.run_folder import RUN_FILE, FoldFolder, RunFolder, select_folds
from tmi.toolkit.storage.bounded_files import WEIGHTS_BYTES, read_bytes
from tmi.toolkit.storage.hashing import sha256_file

KEPT_BYTES = 512 * 2**20
"""Weights of folds that stay in memory, so that the next case does not load them again: all folds of a small preset."""
EAGER = "eager"
"""Engine that runs the weights which are explained."""


@dataclass(frozen=True, kw_only=True)
class FoldModel:
    """Model of one fold, and the preprocessing fitted with it."""

    fold: int
    """Number of the fold."""
    network: MultimodalNetwork
    """Network in evaluation mode; no weight requires a gradient."""
    scaler: RadiomicsScaler
    """Radiomics scaler."""
    tokenizer: Tokenizer
    """Tokenizer."""

    @property
    def fused(self) -> TmiClnet:
        """The network, if it uses all three modalities.

        Raises:
            ValueError: it is a CT-only network, which has no text and no radiomics to explain.
        """
        if not isinstance(self.network, TmiClnet):
            raise ValueError("a network of all three modalities is required, this one uses the CT alone")
        return self.network


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A run or bundle whose models are explained."""

    kind: str
    """`run` or `bundle`."""
    folder: Path
    """Folder of the run or bundle."""
    digest: str
    """SHA-256 of run.json or manifest.json."""
    config: Config
    """Config of the training."""
    schema: Schema
    """Clinical schema of the models."""
    folds: tuple[int, ...]
    """Fold numbers."""
    threshold: float
    """Smallest probability of the positive class at which the decision is `bad`."""
    synthetic: bool
    """Whether the models were trained on synthetic cases."""
    trust: TrustAssessor
    """Statistics of the training cases, which assesses nothing for models of earlier versions."""
    load: Callable[[int], FoldModel]
    """Loads the model of a fold; the last one is kept, and as many others as fit into `KEPT_BYTES`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index."""
        return CLASSES

    @property
    def positive(self) -> int:
        """Index of the positive class."""
        return POSITIVE

    @property
    def ct_only(self) -> bool:
        """Whether the models use the CT alone."""
        return _can_be_explained(self.config) and active_modalities(self.config) == ("image",)

    def select_folds(self, fold: str) -> tuple[int, ...]:
        """Fold numbers of `ensemble` or of a single number.

        Raises:
            UsageError: no such fold.
        """
        return select_folds(fold, self.folds, of=f"{self.kind} {self.folder}")


def open_run_models(folder: Path) -> ModelSource:
    """Open the models of a finished run, after comparing every file with the training's record.

    Raises:
        UsageError: not a run, not finished, or its models have no four residual stages to explain: another model than
            TMI-CLNet, or TMI-CLNet with other modalities than all three or the CT alone.
        DamagedError: a file is missing, was changed, or is of another version.
    """
    run = RunFolder.open(folder).require_finished()
    if not _can_be_explained(run.config):
        raise UsageError(
            f"run {folder} is of system {run.config.system.name} on {', '.join(active_modalities(run.config))}",
            fix="give a run of tmi-clnet with all three modalities, or as --ct-only one of the CT alone (image)",
        )
    require_rendering(run.config.clinical.rendering, run.rendering_version, kind="run")

    def load(fold: int) -> FoldModel:
        files = run.fold(fold)
        return FoldModel(
            fold=fold,
            network=_network(run.config, _calibrated_weights(run.config, files), kind="run"),
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
        threshold=run.threshold,
        synthetic=bool(run.state.get("cohort", {}).get("synthetic", False)),
        trust=TrustAssessor.of_run(run, image="image" in active_modalities(run.config)),
        load=keep_folds(load),
    )


def open_bundle_models(
    folder: Path, *, key: Keys = None, threads: int | None = None, log: LogCallback = lambda line: None
) -> ModelSource:
    """Open the models of a bundle, after comparing every file with its manifest and checking its signature by `key`.

    Args:
        folder: the bundle.
        key: public keys (PEM) of which one must have signed it; None: those of `tmi.toml`, if any.
        threads: as in `bundle_models`.
        log: as in `bundle_models`.

    Raises:
        UsageError: not a bundle, or as in `bundle_models`.
        DamagedError: it is damaged, was edited, or is not signed by the key.
        UnavailableError: it was exported without weights.
        ParityError: as in `bundle_models`.
    """
    return bundle_models(open_trusted_bundle(folder, key), threads=threads, log=log)


def bundle_models(
    bundle: Bundle,
    *,
    threads: int | None = None,
    log: LogCallback = lambda line: None,
    check_memory: Callable[[Config], None] = lambda config: None,
) -> ModelSource:
    """Models of an opened bundle. The first time on a machine its weights run the self-test of the engine `eager`.

    Args:
        bundle: the opened bundle.
        threads: threads of the self-test; None uses all cores.
        log: receives one line about a self-test.
        check_memory: raises if the machine has too little memory; called before the self-test.

    Raises:
        UsageError: another network than TMI-CLNet with all three modalities.
        DamagedError: the weights are of another network than the config's.
        UnavailableError: it was exported without weights.
        ParityError: the weights do not give the outputs of the validated model.
    """
    manifest, folder = bundle.manifest, bundle.folder
    if not bundle.has("weights"):
        raise UnavailableError(
            f"bundle {folder} holds no weights, and its compiled graphs have no gradients",
            fix="export it without --no-weights, or explain the run itself with --run",
        )
    config = manifest.config
    if not _can_be_explained(config) or manifest.modalities != MODALITIES:
        raise UsageError(
            f"bundle {folder} is of system {config.system.name} on {', '.join(manifest.modalities)}; it can "
            "predict with `tmi predict`, but it cannot be explained",
            fix="give a bundle of tmi-clnet with all three modalities",
        )
    clinical = manifest.clinical
    require_rendering(clinical.rendering, clinical.rendering_version, kind="bundle")
    try:
        check_memory(config)
    except UnavailableError:
        # A forged config asks for any amount of memory: then its sizes are not those of the weights, and this raises.
        _network(config, _bundled_weights(bundle, manifest.folds[0], 0), kind="bundle")
        raise
    _require_self_test(bundle, threads, log)
    positions = {spec.fold: (position, spec) for position, spec in enumerate(manifest.folds)}

    def load(fold: int) -> FoldModel:
        position, spec = positions[fold]
        assert spec.text is not None  # all modalities are active
        assert spec.scaler is not None
        tokenizer = manifest.graph(spec.text).tokenizer
        if tokenizer is None:
            raise DamagedError(f"bundle {folder}: graph {spec.text} has no tokenizer", fix="export it again")
        return FoldModel(
            fold=fold,
            network=_network(config, _bundled_weights(bundle, spec, position), kind="bundle"),
            scaler=bundled_scaler(bundle, spec.scaler),
            tokenizer=bundled_tokenizer(bundle, tokenizer),
        )

    return ModelSource(
        kind="bundle",
        folder=folder,
        digest=bundle.digest,
        config=config,
        schema=bundled_schema(bundle),
        folds=tuple(positions),
        threshold=manifest.threshold,
        synthetic=manifest.synthetic,
        trust=TrustAssessor.of_bundle(bundle),
        load=keep_folds(load),
    )


def _require_self_test(bundle: Bundle, threads: int | None, log: LogCallback) -> None:
    """Run the self-test with the eager weights unless this machine has passed it before."""
    passed, failure = cached_result(bundle, EAGER)
    if not passed or failure is not None:
        engine, _ = open_selected_engine(EAGER, bundle, threads=threads, log=log)
        engine.close()


def _can_be_explained(config: Config) -> bool:
    """Whether the configured model can be explained with its active modalities."""
    return active_modalities(config) in configured_model(config).explained


def keep_folds(load: Callable[[int], FoldModel], *, kept_bytes: int = KEPT_BYTES) -> Callable[[int], FoldModel]:
    """Keep the folds that fit into `kept_bytes`, and the last one: with the full-size preset each takes 0.7 GB.

    Folds are asked for in the same order for every case, so that dropping the oldest one would keep none that is
    needed.
    """
    kept: dict[int, FoldModel] = {}
    last: dict[int, FoldModel] = {}
    free = kept_bytes

    def loaded(fold: int) -> FoldModel:
        nonlocal free
        if fold in kept:
            return kept[fold]
        if fold not in last:
            last.clear()
            model = load(fold)
            size = sum(tensor.nbytes for tensor in model.network.state_dict().values())
            place = kept if size <= free else last
            place[fold] = model
            free -= size if place is kept else 0
            return model
        return last[fold]

    return loaded


def _bundled_weights(bundle: Bundle, fold: FoldSpec, position: int) -> dict[str, Tensor]:
    """Complete state dict of a fold from the files of its three graphs."""
    state: dict[str, Tensor] = {}
    for graph, module_prefix, file_prefix in (
        (fold.ct, "ct_encoder.", ""),
        (fold.text, "text_encoder.", ""),
        (FUSION, "fusion.", f"fold{position}."),
    ):
        assert graph is not None  # all modalities are active
        file = bundle.artefact(bundle.manifest.graph(graph), "weights")
        assert file is not None  # the caller checked that every graph has weights
        state |= {
            module_prefix + k.removeprefix(file_prefix): t
            for k, t in _weights(file, partial(bundle.read, file)).items()
            if k.startswith(file_prefix)
        }
    return state


def _calibrated_weights(config: Config, files: FoldFolder) -> dict[str, Tensor]:
    """State dict of a fold with the temperature folded into the last layer, as in an export: logits / T."""
    return apply_temperature(
        config, _weights(files.model, partial(read_bytes, files.model, max_bytes=WEIGHTS_BYTES)), files.temperature
    )


def _weights(path: Path, read: Callable[[], bytes]) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = parse_tensors(read())
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path} cannot be read as safetensors", fix="restore it from its source") from error
    return state


def _network(config: Config, state: dict[str, Tensor], *, kind: str) -> MultimodalNetwork:
    return create_with_weights(
        partial(create_network, config),
        state,
        where=f"{kind}: its weights",
        fix=f"use the version of tmi that made the {kind}",
    )
