"""Where the network is cut, which encoders are shared, and the fold models as `nn.Module`s that give those graphs.

B batch, T tokens, F folds, C channels, K classes, R = 1781 features. Graphs, inputs and outputs are those that
`tmi.runtime.bundle.manifest` describes. An encoder whose weights (for text: and tokenizer) are the same in several
folds is one graph, run once.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tmi.runtime.bundle.manifest import GraphSpec, Role, TensorSpec
from tmi.toolkit.config.schema import N_RADIOMICS, Config
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.models.factory import create_network
from tmi.toolkit.models.multimodal import MultimodalNetwork
from tmi.toolkit.models.registry import active_modalities, apply_temperature, ct_feature_width, encoder_roles
from tmi.toolkit.models.weights import AnyModule, load_weights_strict
from tmi.toolkit.run_folder import FoldFolder, RunFolder
from tmi.toolkit.storage.hashing import sha256_file

StateDict = dict[str, Tensor]
PREFIXES: dict[Role, str] = {"ct": "ct_encoder.", "text": "text_encoder.", "fusion": "fusion."}
"""Role of a graph -> prefix of its weights in a fold's model."""
OTHER_VERSION_FIX = "export with the version of tmi that trained the run (its run.json names it), or train it again"
"""What to do with a run whose weights are not those of this version's network."""


@dataclass(frozen=True, kw_only=True)
class DistinctEncoder:
    """One distinct encoder."""

    name: str
    """Graph name."""
    role: Role
    """`ct` or `text`."""
    folds: tuple[int, ...]
    """Fold numbers that use it."""
    tokenizer: Path | None
    """Its tokenizer file in the run."""


@dataclass(frozen=True, kw_only=True)
class GraphPartition:
    """What a run becomes: its distinct encoders, and its folds in the order of the fusion graph's fold axis."""

    encoders: tuple[DistinctEncoder, ...]
    folds: tuple[int, ...]

    def encoder(self, role: Role, fold: int) -> DistinctEncoder | None:
        """The encoder that a fold uses; None where the network has no such part."""
        return next((e for e in self.encoders if e.role == role and fold in e.folds), None)

    def graph(self, role: Role, fold: int) -> str | None:
        """The name of that encoder's graph."""
        plan = self.encoder(role, fold)
        return None if plan is None else plan.name


class MultiFoldFusion(nn.Module):
    """The fusion part of every fold in one graph; fold i reads row i of the fold axis of each input."""

    def __init__(self, folds: list[nn.Module]) -> None:
        super().__init__()
        self.folds = nn.ModuleList(folds)

    def forward(
        self,
        first_BFC: Float[Tensor, "B F C1"],
        second_BFC: Float[Tensor, "B F C2"] | None = None,
        third_BFC: Float[Tensor, "B F C3"] | None = None,
    ) -> Float[Tensor, "B F K"]:
        """Logits of every fold, from the inputs that the graph has, in their order."""
        given = [t for t in (first_BFC, second_BFC, third_BFC) if t is not None]
        return torch.stack([f(*(t[:, i] for t in given)).logits_BK for i, f in enumerate(self.folds)], dim=1)


def read_weights(path: Path, prefix: str = "") -> StateDict:
    """The tensors below `prefix` in a safetensors file, without the prefix; nothing is unpickled.

    Raises:
        DamagedError: no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            return {k.removeprefix(prefix): stream.get_tensor(k) for k in stream.keys() if k.startswith(prefix)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"run: {path} cannot be read as safetensors", fix="train the run again") from error


def weights_digest(state: StateDict) -> str:
    """SHA-256 over names, types, shapes and bytes. Counters of batches seen are left out: they compute nothing."""
    digest = hashlib.sha256()
    for key in sorted(k for k in state if not k.endswith("num_batches_tracked")):
        tensor = state[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def partition_run(run: RunFolder) -> GraphPartition:
    """Find the distinct encoders of a finished run, one fold in memory at a time."""
    folds = tuple(split.fold for split in run.folds)
    roles = encoder_roles(active_modalities(run.config))
    users: dict[tuple[Role, str], list[int]] = {}
    for fold in folds:
        files = run.fold(fold)
        for role in roles:
            digest = weights_digest(read_weights(files.model, PREFIXES[role]))
            tokenizer = sha256_file(files.tokenizer) if role == "text" else ""
            users.setdefault((role, digest + tokenizer), []).append(fold)
    encoders = []
    for role in roles:
        groups = [tuple(users[key]) for key in users if key[0] == role]
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


def graph_spec(config: Config, role: Role, name: str, *, folds: int, tokenizer: str | None = None) -> GraphSpec:
    """Names, types and shapes of a graph's tensors; no artefact yet."""
    widths = {"ct_features": ct_feature_width(config), "text_features": config.network.text_encoder.hidden_size}
    inputs: tuple[TensorSpec, ...]
    if role == "ct":
        inputs = (TensorSpec(name="ct", dtype="float32", shape=("B", 1, *config.ct.shape_DHW)),)
        outputs = (TensorSpec(name="ct_features", dtype="float32", shape=("B", widths["ct_features"])),)
    elif role == "text":
        inputs = (
            TensorSpec(name="input_ids", dtype="int64", shape=("B", "T")),
            TensorSpec(name="attention_mask", dtype="int64", shape=("B", "T")),
        )
        outputs = (TensorSpec(name="text_features", dtype="float32", shape=("B", widths["text_features"])),)
    else:
        taken = {f"{role}_features": widths[f"{role}_features"] for role in encoder_roles(active_modalities(config))}
        taken |= {"radiomics": N_RADIOMICS} if "radiomics" in active_modalities(config) else {}
        inputs = tuple(
            TensorSpec(name=name, dtype="float32", shape=("B", folds, width)) for name, width in taken.items()
        )
        outputs = (TensorSpec(name="logits", dtype="float32", shape=("B", folds, 2)),)
    return GraphSpec(name=name, role=role, inputs=inputs, outputs=outputs, artefacts={}, tokenizer=tokenizer)


def example_inputs(spec: GraphSpec) -> tuple[Tensor, ...]:
    """Small inputs to trace a graph with: two cases, so that no batch of one is baked in, and a padded text."""
    size = {"B": 2, "T": 11}
    shapes = [tuple(size[a] if isinstance(a, str) else a for a in t.shape) for t in spec.inputs]
    if spec.role == "text":
        ids, mask = torch.ones(shapes[0], dtype=torch.int64), torch.ones(shapes[1], dtype=torch.int64)
        ids[1, 7:], mask[1, 7:] = 0, 0
        return ids, mask
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(shape, generator=generator) for shape in shapes)


def calibrated_weights(config: Config, files: FoldFolder, prefix: str = "") -> StateDict:
    """A fold's weights below a prefix, divided by its temperature (`tmi.toolkit.models.registry.apply_temperature`).

    So every engine, and every gate, answers with the calibrated logits, and no runtime has a temperature to forget.

    Raises:
        DamagedError: no safetensors file, or a temperature for weights that cannot take it.
    """
    return apply_temperature(config, read_weights(files.model, prefix), files.temperature, prefix=prefix)


class FoldModels:
    """A run's fold models, calibrated, one in memory at a time. What it gives is valid until the next call."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.config = run.config
        self._model = create_network(run.config).eval().requires_grad_(False)

    def network(self, fold: int) -> MultimodalNetwork:
        """The whole model of a fold."""
        return self._load_weights(self._model, fold, "")

    def encoder(self, plan: DistinctEncoder) -> nn.Module:
        """The encoder of a plan, with the weights of the first fold that uses it."""
        part = self._model.ct_encoder if plan.role == "ct" else self._model.text_encoder
        assert part is not None  # the plan is of this network
        return self._load_weights(part, plan.folds[0], PREFIXES[plan.role])

    def fusion(self, folds: tuple[int, ...]) -> MultiFoldFusion:
        """The fusion of every fold, in that order."""
        prefix = PREFIXES["fusion"]
        return MultiFoldFusion(
            [self._load_weights(copy.deepcopy(self._model.fusion), fold, prefix) for fold in folds]
        ).eval()

    def state(self, spec: GraphSpec, *, fold: int) -> StateDict:
        """What a fold's model says the weights of a graph are, by the names of the eager module."""
        return calibrated_weights(self.config, self.run.fold(fold), PREFIXES[spec.role])

    def _load_weights(self, part: AnyModule, fold: int, prefix: str) -> AnyModule:
        files = self.run.fold(fold)
        state = calibrated_weights(self.config, files, prefix)
        return load_weights_strict(part, state, where=f"run: the weights in {files.model}", fix=OTHER_VERSION_FIX)
