"""The stages of an export, in order, over one context.

`tmi export` runs all of them. `tmi export --add` runs them on a copy of a bundle, and writes and checks what is added.
`tmi build` runs the tail from `tensorrt` on. `tmi verify --rebuild` runs all in a temporary folder. Engines are
validated before TensorRT engines are built from the same graphs, because a build may take minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tmi.export.bundle.context import ExportContext
from tmi.toolkit.model_registry import import_target

STAGES: Mapping[str, str] = MappingProxyType(
    {
        "partition": "tmi.export.bundle.network_stages:partition",
        "reference": "tmi.export.bundle.network_stages:reference",
        "write": "tmi.export.bundle.network_stages:write",
        "audit": "tmi.export.bundle.network_stages:audit",
        "validate": "tmi.export.bundle.network_stages:validate",
        "int8": "tmi.export.bundle.delivery_stages:int8",
        "tensorrt": "tmi.export.bundle.delivery_stages:tensorrt",
        "document": "tmi.export.bundle.delivery_stages:document",
        "publish": "tmi.export.bundle.delivery_stages:publish",
    }
)
"""Stage -> `module:function`, called as f(context). Modules are imported when a stage runs: only the stages before
`tensorrt` need torch."""


def run_stages(context: ExportContext, *, start: str = "partition") -> None:
    """Run a stage and all later ones.

    Args:
        context: the export. A stage reads what earlier stages set.
        start: the first stage.
    """
    names = list(STAGES)
    for name in names[names.index(start) :]:
        stage: Callable[[ExportContext], None] = import_target(STAGES[name])
        stage(context)
