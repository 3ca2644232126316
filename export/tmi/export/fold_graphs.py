"""Where the network is cut, which encoders are shared, and the fold models as `nn.Module`s that give those graphs.

B batch, T tokens, F folds, C channels, K classes, R = 1781 features. Graphs, inputs and outputs are those that
`tmi.toolkit.manifest` describes. An encoder whose weights (for text: and tokenizer) are the same in several folds is
one graph, run once.
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

from tmi.toolkit.config import N_RADIOMICS, Config
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.hashing import sha256_file
from tmi.toolkit.manifest import GraphSpec, Role, TensorSpec
from tmi.toolkit.network.tmi_clnet import TmiClnet
from tmi.toolkit.run_folder import FoldFolder, RunFolder

State = dict[str, Tensor]
PREFIXES: dict[Role, str] = {"ct": "ct_encoder.", "text": "text_encoder.", "fusion": "fusion."}
"""Role of a graph -> prefix of its weights in a fold's model."""
LAST_LAYER = "fusion.head.densenet.class_layers.out."
"""The layer whose outputs are the logits."""


@dataclass(frozen=True, kw_only=True)
class EncoderPlan:
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
class Cut:
    """What a run becomes: its distinct encoders, and its folds in the order of the fusion graph's fold axis."""

    encoders: tuple[EncoderPlan, ...]
    folds: tuple[int, ...]

    def encoder(self, role: Role, fold: int) -> EncoderPlan:
        """The encoder that a fold uses."""
        return next(e for e in self.encoders if e.role == role and fold in e.folds)


class FusionOfFolds(nn.Module):
    """Radiomics encoder, interaction and head of every fold in one graph; fold i reads row i of the fold axis."""

    def __init__(self, folds: list[nn.Module]) -> None:
        super().__init__()
        self.folds = nn.ModuleList(folds)

    def forward(
        self,
        ct_BFC: Float[Tensor, "B F C"],
        text_BFC: Float[Tensor, "B F Ct"],
        radiomics_BFR: Float[Tensor, "B F R"],
    ) -> Float[Tensor, "B F K"]:
        """Logits of every fold."""
        return torch.stack(
            [f(ct_BFC[:, i], text_BFC[:, i], radiomics_BFR[:, i]).logits_BK for i, f in enumerate(self.folds)], dim=1
        )


def read_weights(path: Path, prefix: str = "") -> State:
    """The tensors below `prefix` in a safetensors file, without the prefix; nothing is unpickled.

    Raises:
        DamagedError: no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            return {k.removeprefix(prefix): stream.get_tensor(k) for k in stream.keys() if k.startswith(prefix)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"run: {path} cannot be read as safetensors", fix="train the run again") from error


def restore(module: nn.Module, state: State, *, where: Path) -> nn.Module:
    """The module with exactly these weights, in evaluation mode.

    Raises:
        DamagedError: other names or shapes than the network's.
    """
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise DamagedError(
            f"run: the weights in {where} are not those of the network in its config",
            fix="export with the version of tmi that trained the run",
        ) from error
    return module.eval().requires_grad_(False)


def weights_digest(state: State) -> str:
    """SHA-256 over names, types, shapes and bytes. Counters of batches seen are left out: they compute nothing."""
    digest = hashlib.sha256()
    for key in sorted(k for k in state if not k.endswith("num_batches_tracked")):
        tensor = state[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cut_run(run: RunFolder) -> Cut:
    """Find the distinct encoders of a finished run, one fold in memory at a time."""
    folds = tuple(split.fold for split in run.folds)
    users: dict[tuple[Role, str], list[int]] = {}
    for fold in folds:
        files = run.fold(fold)
        roles: tuple[Role, ...] = ("ct", "text")
        for role in roles:
            digest = weights_digest(read_weights(files.model, PREFIXES[role]))
            tokenizer = sha256_file(files.tokenizer) if role == "text" else ""
            users.setdefault((role, digest + tokenizer), []).append(fold)
    encoders = []
    for role in roles:
        groups = [tuple(users[key]) for key in users if key[0] == role]
        for number, group in enumerate(sorted(groups)):
            encoders.append(
                EncoderPlan(
                    name=f"{role}-{number}",
                    role=role,
                    folds=group,
                    tokenizer=run.fold(group[0]).tokenizer if role == "text" else None,
                )
            )
    return Cut(encoders=tuple(encoders), folds=folds)


def graph_spec(config: Config, role: Role, name: str, *, folds: int, tokenizer: str | None = None) -> GraphSpec:
    """Names, types and shapes of a graph's tensors; no artefact yet."""
    network = config.network
    ct_width, text_width = network.ct_encoder.feature_width, network.text_encoder.hidden_size
    inputs: tuple[TensorSpec, ...]
    if role == "ct":
        inputs = (TensorSpec(name="ct", dtype="float32", shape=("B", 1, *config.ct.shape_DHW)),)
        outputs = (TensorSpec(name="ct_features", dtype="float32", shape=("B", ct_width)),)
    elif role == "text":
        inputs = (
            TensorSpec(name="input_ids", dtype="int64", shape=("B", "T")),
            TensorSpec(name="attention_mask", dtype="int64", shape=("B", "T")),
        )
        outputs = (TensorSpec(name="text_features", dtype="float32", shape=("B", text_width)),)
    else:
        inputs = (
            TensorSpec(name="ct_features", dtype="float32", shape=("B", folds, ct_width)),
            TensorSpec(name="text_features", dtype="float32", shape=("B", folds, text_width)),
            TensorSpec(name="radiomics", dtype="float32", shape=("B", folds, N_RADIOMICS)),
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


def calibrated_weights(files: FoldFolder, prefix: str = "") -> State:
    """A fold's weights below a prefix, its temperature T taken into the head's last layer: (W/T) x + b/T = logits / T.

    So every engine, and every gate, answers with the calibrated logits, and no runtime has a temperature to forget.

    Raises:
        DamagedError: no safetensors file, or a temperature for a head that does not end in that layer.
    """
    state, temperature = read_weights(files.model, prefix), files.temperature
    last = [key for key in (f"{LAST_LAYER}weight", f"{LAST_LAYER}bias") if key.startswith(prefix)]
    if temperature == 1.0 or not last:
        return state
    for key in (name.removeprefix(prefix) for name in last):
        if key not in state:
            raise DamagedError(
                f"run: {files.metrics} gives a temperature, and the model has no last layer to take it",
                fix="train the run again",
            )
        state[key] = state[key] / temperature
    return state


class FoldModels:
    """A run's fold models, calibrated, one in memory at a time. What it gives is valid until the next call."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.config = run.config
        self._model = TmiClnet(run.config.network).eval().requires_grad_(False)

    def whole(self, fold: int) -> TmiClnet:
        """The whole model of a fold."""
        path = self.run.fold(fold).model
        restore(self._model, calibrated_weights(self.run.fold(fold)), where=path)
        return self._model

    def encoder(self, plan: EncoderPlan) -> nn.Module:
        """The encoder of a plan, with the weights of the first fold that uses it."""
        path = self.run.fold(plan.folds[0]).model
        part: nn.Module = self._model.ct_encoder if plan.role == "ct" else self._model.text_encoder
        return restore(part, read_weights(path, PREFIXES[plan.role]), where=path)

    def fusion(self, folds: tuple[int, ...]) -> FusionOfFolds:
        """The fusion of every fold, in that order."""
        parts = []
        for fold in folds:
            path = self.run.fold(fold).model
            state = calibrated_weights(self.run.fold(fold), PREFIXES["fusion"])
            parts.append(restore(copy.deepcopy(self._model.fusion), state, where=path))
        return FusionOfFolds(parts).eval()

    def state(self, spec: GraphSpec, *, fold: int) -> State:
        """What a fold's model says the weights of a graph are, by the names of the eager module."""
        return calibrated_weights(self.run.fold(fold), PREFIXES[spec.role])
