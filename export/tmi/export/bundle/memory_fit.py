"""Compares the memory that an export needs with what the machine has, before the first network runs.

    bytes = process with the packages of the export + 2.75 * weights of all graphs
          + tensors of the largest batch * (1.1, or 1.5 with the simulation of a TensorRT engine)

An engine holds the weights of all graphs at once, beside the file that it read and its own packed copies. Tensors of
a case are counted on torch's meta device (`tmi.toolkit.models.live_memory`); an engine takes some more than they need.
The factors are fitted to measured exports (docs/performance-history.md, "Memory").
"""

from __future__ import annotations

from torch import nn

from tmi.export.graphs.partition import GraphPartition
from tmi.runtime.verification.golden_inputs import largest_batch
from tmi.toolkit.compute.memory import fits, format_memory, require_memory
from tmi.toolkit.config.schema import Config
from tmi.toolkit.models.live_memory import MetaNetwork, meta_network

PROCESS_BYTES = int(0.8 * 2**30)
"""Process with torch, the ONNX packages and OpenVINO."""
COPIES = 2.75
"""Weights in memory while an engine opens its graphs."""
TENSORS, SIMULATED_TENSORS = 1.1, 1.5
"""Memory of a batch, as a multiple of its live tensors in eager mode."""


def export_bytes(config: Config, partition: GraphPartition, *, simulated: bool) -> int:
    """Peak memory of an export.

    Args:
        config: of the run.
        partition: the graphs.
        simulated: whether typed graphs of TensorRT engines are validated by simulation.
    """
    meta = meta_network(config)
    batch = largest_batch(config) * meta.inference_bytes()
    factor = SIMULATED_TENSORS if simulated else TENSORS
    return int(PROCESS_BYTES + COPIES * _graph_bytes(meta, partition) + factor * batch)


def require_export_memory(config: Config, partition: GraphPartition, *, simulated: bool, adding: bool = False) -> None:
    """Raise if the machine has less memory than the export needs.

    Args:
        config, partition, simulated: as in `export_bytes`.
        adding: whether the engines are added to a bundle, so that no smaller export replaces this one.

    Raises:
        UnavailableError: it does not fit.
    """
    fix = "close other programs, or export on a machine with more memory"
    less = export_bytes(config, partition, simulated=False)
    if simulated and not adding and fits(less):
        fix = (
            f"export --engine onnx here ({format_memory(less)}) and add the TensorRT engine on a machine with more "
            "memory (--add)"
        )
    require_memory(
        "the export",
        export_bytes(config, partition, simulated=simulated),
        fix=f"{fix}; tmi export --no-memory-check exports as it is",
    )


def _graph_bytes(meta: MetaNetwork, partition: GraphPartition) -> int:
    network = meta.network
    part: dict[str, nn.Module | None] = {"ct": network.ct_encoder, "text": network.text_encoder}
    encoders = sum(_bytes(part[encoder.role]) for encoder in partition.encoders)
    return encoders + len(partition.folds) * _bytes(network.fusion)


def _bytes(module: nn.Module | None) -> int:
    return 0 if module is None else sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
