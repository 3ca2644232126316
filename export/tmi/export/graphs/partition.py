"""Partition of a run's fold models into graphs: one per distinct encoder, and one fusion graph for all folds.

B batch, T tokens, F folds, C channels, K classes, R = 1781 features. `tmi.runtime.bundle.manifest` describes graphs,
inputs and outputs. An encoder that has the same weights in several folds (a text encoder: also the same tokenizer) is
one graph and runs once for these folds.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tmi.runtime.bundle.manifest import GraphSpec, Role
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.model_registry import model_names
from tmi.toolkit.models.factory import create_network
from tmi.toolkit.models.multimodal import MultimodalNetwork
from tmi.toolkit.models.registry import active_modalities, apply_temperature, configured_model, encoder_roles
from tmi.toolkit.models.weights import AnyModule, load_weights_strict
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.storage.bounded_files import WEIGHTS_BYTES, require_bounded
from tmi.toolkit.storage.hashing import sha256_file

StateDict = dict[str, Tensor]
PREFIXES: dict[Role, str] = {"ct": "ct_encoder.", "text": "text_encoder.", "fusion": "fusion."}
"""Role of a graph -> prefix of its weights in a fold's model."""
OTHER_VERSION_FIX = "export with the version of tmi that trained the run (its run.json names it), or train it again"
"""Fix for a run whose weights do not match this version's network."""


@dataclass(frozen=True, kw_only=True)
class DistinctEncoder:
    """One encoder and the folds that share it."""

    name: str
    """Graph name."""
    role: Role
    """`ct` or `text`."""
    folds: tuple[int, ...]
    """Numbers of the folds that use it."""
    tokenizer: Path | None
    """Tokenizer file in the run; None for CT encoders."""


@dataclass(frozen=True, kw_only=True)
class GraphPartition:
    """The graphs of a run: its distinct encoders, and its folds in the order of the fusion graph's fold axis."""

    encoders: tuple[DistinctEncoder, ...]
    folds: tuple[int, ...]

    def encoder(self, role: Role, fold: int) -> DistinctEncoder | None:
        """The encoder that a fold uses; None where the network has no encoder of that role."""
        return next((e for e in self.encoders if e.role == role and fold in e.folds), None)

    def encoder_name(self, role: Role, fold: int) -> str | None:
        """The graph name of `encoder(role, fold)`."""
        encoder = self.encoder(role, fold)
        return None if encoder is None else encoder.name


class MultiFoldFusion(nn.Module):
    """The fusion modules of all folds in one graph. Fold i reads index i of the fold axis of each input."""

    def __init__(self, folds: list[nn.Module]) -> None:
        super().__init__()
        self.folds = nn.ModuleList(folds)

    def forward(
        self,
        first_BFC: Float[Tensor, "B F C1"],
        second_BFC: Float[Tensor, "B F C2"] | None = None,
        third_BFC: Float[Tensor, "B F C3"] | None = None,
    ) -> Float[Tensor, "B F K"]:
        """Logits of every fold, from the graph's inputs in their order."""
        inputs = [t for t in (first_BFC, second_BFC, third_BFC) if t is not None]
        return torch.stack([f(*(t[:, i] for t in inputs)).logits_BK for i, f in enumerate(self.folds)], dim=1)


def require_exportable(run: RunFolder) -> None:
    """Check that a run's model has a network. Runs of scikit-learn estimators cannot be exported.

    Raises:
        UsageError: the run is of an estimator.
    """
    name = run.config.system.name
    if configured_model(run.config).trainer != "torch":
        raise UsageError(
            f"run {run.path} is of the model {name}, which has no network to export",
            fix=f"export a run of {', '.join(model_names(trainer='torch'))}; `tmi compare` prints what {name} "
            "predicts on the held-out cases",
        )


def read_weights(path: Path, prefix: str = "") -> StateDict:
    """Read the tensors below `prefix` from a safetensors file; the prefix is removed. Nothing is unpickled.

    Raises:
        DamagedError: the file is not a safetensors file.
    """
    try:
        require_bounded(path, max_bytes=WEIGHTS_BYTES)
        with safe_open(path, framework="pt") as stream:
            return {k.removeprefix(prefix): stream.get_tensor(k) for k in stream.keys() if k.startswith(prefix)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"run: {path} cannot be read as safetensors", fix="train the run again") from error


def weights_digest(state: StateDict) -> str:
    """SHA-256 over names, types, shapes and bytes. Batch norm's `num_batches_tracked` is skipped: it is unused."""
    digest = hashlib.sha256()
    for key in sorted(k for k in state if not k.endswith("num_batches_tracked")):
        tensor = state[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class RunWeights:
    """The weights of a run's folds. Each fold's file is opened once.

    The tensors are views of the mapped file: the system pages them in as they are used, and drops them as needed.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.config = run.config
        self._by_fold: dict[int, StateDict] = {}

    def stored(self, fold: int, prefix: str = "") -> StateDict:
        """The weights of a fold below a prefix, as trained; the prefix is removed.

        Raises:
            DamagedError: the file is not a safetensors file.
        """
        if fold not in self._by_fold:
            self._by_fold[fold] = read_weights(self.run.fold(fold).model)
        return {k.removeprefix(prefix): t for k, t in self._by_fold[fold].items() if k.startswith(prefix)}

    def calibrated(self, fold: int, prefix: str = "") -> StateDict:
        """The same, divided by the fold's temperature (`tmi.toolkit.models.registry.apply_temperature`).

        The graphs output calibrated logits. Engines and parity checks apply no temperature of their own.

        Raises:
            DamagedError: the file is not a safetensors file, or the weights cannot absorb the temperature.
        """
        return apply_temperature(self.config, self.stored(fold, prefix), self.run.fold(fold).temperature, prefix=prefix)


def partition_run(run: RunFolder, weights: RunWeights | None = None) -> GraphPartition:
    """Find the distinct encoders of a finished run.

    Args:
        run: the run.
        weights: its weights, if the caller has opened them.
    """
    weights = weights or RunWeights(run)
    folds = tuple(split.fold for split in run.folds)
    roles = encoder_roles(active_modalities(run.config))
    folds_by_digest: dict[tuple[Role, str], list[int]] = {}
    for fold in folds:
        files = run.fold(fold)
        for role in roles:
            digest = weights_digest(weights.stored(fold, PREFIXES[role]))
            tokenizer = sha256_file(files.tokenizer) if role == "text" else ""
            folds_by_digest.setdefault((role, digest + tokenizer), []).append(fold)
    encoders = []
    for role in roles:
        groups = [tuple(folds_by_digest[key]) for key in folds_by_digest if key[0] == role]
        # Sorted by their folds, so that graph names do not depend on digests.
        for number, group in enumerate(sorted(groups)):
            encoders.append(
                DistinctEncoder(
                    name=f"{role}-{number}",
                    role=role,
                    folds=group,
                    tokenizer=run.fold(group[0]).tokenizer if role == "text" else None,
                )
            )
    return GraphPartition(encoders=tuple(encoders), folds=folds)


def example_inputs(spec: GraphSpec) -> tuple[Tensor, ...]:
    """Small inputs for tracing: two cases, so that a batch of one is not specialised, and one padded text."""
    size = {"B": 2, "T": 11}
    shapes = [tuple(size[a] if isinstance(a, str) else a for a in t.shape) for t in spec.inputs]
    if spec.role == "text":
        ids, mask = torch.ones(shapes[0], dtype=torch.int64), torch.ones(shapes[1], dtype=torch.int64)
        ids[1, 7:], mask[1, 7:] = 0, 0
        return ids, mask
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(shape, generator=generator) for shape in shapes)


class FoldModels:
    """A run's calibrated fold models, one in memory at a time. A returned module is valid until the next call."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.weights = RunWeights(run)
        self._model = create_network(run.config).eval().requires_grad_(False)

    def network(self, fold: int) -> MultimodalNetwork:
        """The complete network of a fold."""
        return self._load_weights(self._model, fold, "")

    def module(self, partition: GraphPartition, spec: GraphSpec) -> nn.Module:
        """The module of a graph; an encoder has the weights of the first fold that uses it."""
        if spec.role == "fusion":
            return self.fusion(partition.folds)
        return self.encoder(next(e for e in partition.encoders if e.name == spec.name))

    def states(self, partition: GraphPartition, spec: GraphSpec) -> Iterator[StateDict]:
        """The weights of a graph, by the names of its module: one set for each fold that uses an encoder."""
        prefix = PREFIXES[spec.role]
        if spec.role == "fusion":
            yield {
                f"folds.{i}.{key}": tensor
                for i, fold in enumerate(partition.folds)
                for key, tensor in self.weights.calibrated(fold, prefix).items()
            }
            return
        for fold in next(e for e in partition.encoders if e.name == spec.name).folds:
            yield self.weights.calibrated(fold, prefix)

    def encoder(self, distinct: DistinctEncoder) -> nn.Module:
        """A distinct encoder, with the weights of the first fold that uses it."""
        module = self._model.ct_encoder if distinct.role == "ct" else self._model.text_encoder
        assert module is not None  # the partition is of this network
        return self._load_weights(module, distinct.folds[0], PREFIXES[distinct.role])

    def fusion(self, folds: tuple[int, ...]) -> MultiFoldFusion:
        """The fusion modules of all folds, in that order."""
        prefix = PREFIXES["fusion"]
        return MultiFoldFusion(
            [self._load_weights(copy.deepcopy(self._model.fusion), fold, prefix) for fold in folds]
        ).eval()

    def _load_weights(self, module: AnyModule, fold: int, prefix: str) -> AnyModule:
        files = self.run.fold(fold)
        state = self.weights.calibrated(fold, prefix)
        return load_weights_strict(module, state, where=f"run: the weights in {files.model}", fix=OTHER_VERSION_FIX)
