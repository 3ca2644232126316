"""Faults planted between the eager model and the exported file, such as a changed weight or a fixed batch size."""

# ruff: noqa: E501 - one fault per row
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from factories.faulty_exporter import Change, plant, with_forward
from factories.planted_faults import Fault, PlantFunction, Workbench
from factories.tmi_command import CommandResult


def _in_graph(graph: str, change: Change, *, engine: str = "torchscript") -> PlantFunction:
    def run(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
        plant(patch, engine, graph=graph, valid_bundle=bench.bundle, change=change)
        return bench.export(engine)

    return run


def _replace_forward(forward: Callable[..., torch.Tensor]) -> Change:
    return lambda module: with_forward(module, forward)


def _epsilon(module: nn.Module) -> nn.Module:
    module.get_submodule("folds.0.ima.clinical.norm").eps = 1e-12
    return module


def _seventh_digit(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        module.get_parameter("backbone.layer3.0.conv1.weight")[0, 0, 0, 0, 0] *= 1 + 1e-6
    return module


def _eight_bits(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in module.parameters():
            step = tensor.abs().max() / 127
            if step > 0:
                tensor.copy_((tensor / step).round() * step)
    return module


def _not_a_number(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] = float("nan")
    return module


def _overflowing_attention(module: nn.Module) -> nn.Module:
    attention = module.bert.encoder.layer[0].attention.self.query
    with_forward(attention, lambda original, x: original(x * 3e38 * 10) / 3e38)
    return module


def _exchanged_folds(module: nn.Module) -> nn.Module:
    module.folds = nn.ModuleList(reversed(module.folds))
    return module


def _of_another_fold(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
    def load(module: nn.Module) -> nn.Module:
        module.load_state_dict(load_file(bench.bundle / "weights" / "ct-0.safetensors"))
        return module

    plant(patch, "torchscript", graph="ct-1", valid_bundle=bench.bundle, change=load)
    return bench.export()


def _fold_files(pattern: str) -> PlantFunction:
    """Copy the file of the first fold to every fold."""

    def run(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
        from tmi.export.bundle import network_stages

        copy = network_stages.copy_run_file

        def copy_first(source: Path, target: Path) -> None:
            copy(source.parents[1] / "fold0" / source.name if source.name == pattern else source, target)

        patch.setattr(network_stages, "copy_run_file", copy_first)
        plant(patch, "torchscript", graph="none", valid_bundle=bench.bundle)
        return bench.export()

    return run


def _fault(name: str, run: PlantFunction, reason: str, *, quick: bool = True) -> Fault:
    return Fault(name=name, where="export", plant=run, code=4, reason=reason, quick=quick)


EXPORT_FAULTS = (
    _fault("wrong epsilon in a layer norm", _in_graph("fusion", _epsilon), "ima.clinical.norm has epsilon 1e-12", quick=False),
    _fault("one weight changed in its seventh digit", _in_graph("ct-1", _seventh_digit),
           "layer3.0.conv1.weight differs from the model's", quick=False),
    _fault("weights rounded to 8 bits", _in_graph("ct-0", _eight_bits), "weights of ct-0 .* differs from the model's"),
    _fault("a weight that is not a number", _in_graph("ct-0", _not_a_number), "weights of ct-0"),
    _fault("overflow in the attention", _in_graph("text-0", _overflowing_attention), "finite of text-0 .* not finite"),
    _fault("folds exchanged in the fusion", _in_graph("fusion", _exchanged_folds), "fold 0 matches fold 1",
           quick=False),
    _fault("the encoder of another fold", _of_another_fold, "weights of ct-1"),
    _fault("classes exchanged in the head", _in_graph("fusion", _replace_forward(lambda f, *x: f(*x).flip(-1))),
           "logits of pipeline"),
    _fault("height and width exchanged in the graph", _in_graph("ct-0", _replace_forward(lambda f, x: f(x.transpose(3, 4)))),
           "features of ct-0"),
    _fault("the attention mask lost in the graph",
           _in_graph("text-0", _replace_forward(lambda f, ids, mask: f(ids, torch.ones_like(mask)))), "padding", quick=False),
    _fault("rows that leak into each other",
           _in_graph("ct-0", _replace_forward(lambda f, x: f(x) - 1e-3 * f(x).mean(dim=0, keepdim=True))),
           "batch-of-1|features", quick=False),
    _fault("a batch size baked into the graph", _in_graph("ct-0", _replace_forward(lambda f, x: f(x).reshape(2, 8))),
           "runs of pipeline .* a batch of 4", quick=False),
    _fault("a branch on values baked into the trace",
           _in_graph("ct-0", _replace_forward(lambda f, x: f(x) if x.sum() > 0 else -f(x))),
           "the trace of ct-0 does not reproduce the model", quick=False),
    _fault("float16 that passes for float32",
           _in_graph("ct-0", _replace_forward(lambda f, x: f(x.half().float()).half().float())), "features of ct-0"),
    _fault("every fold with the scaler of the first", _fold_files("scaler.json"),
           "scalers/fold1.json is not the run's fold1/scaler.json"),
    _fault("every fold with the tokenizer of the first", _fold_files("tokenizer.json"),
           "tokenizers/text-1.json is not the run's fold1/tokenizer.json"),
)  # fmt: skip
