"""`sbom.cdx.json`: the software that exported and validated a bundle, as a CycloneDX 1.6 bill of materials.

Components are the installed dependencies of `tmi-clnet[export]`, with versions and package URLs. The versions on a
serving machine are not part of it; its predictions record them.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseAcknowledgement
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement

from tmi.runtime.bundle.manifest import Manifest
from tmi.toolkit.storage.documents import parse_json
from tmi.toolkit.storage.hashing import sha256_json
from tmi.toolkit.storage.serialization import to_json

ROOT = "tmi-clnet"
EXTRA = "export"


def sbom(manifest: Manifest, *, earlier: Mapping[str, Any] | None = None) -> str:
    """Return the document's text, which is deterministic for a bundle and a set of installed packages.

    Args:
        manifest: the bundle's manifest, without the digests of files.
        earlier: document of the bundle before an addition. Its components that are not installed now stay listed,
            because they exported and validated the earlier artefacts.
    """
    installed = {_canonical_name(d.metadata["Name"]): d for d in importlib.metadata.distributions()}
    names = sorted(_dependency_closure(installed))
    components = {name: _component(name, installed[name]) for name in names}
    run = manifest.run.name
    model = Component(
        name=f"tmi-bundle:{run}",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"bundle:{run}",
        version=manifest.run.finished_at or "unknown",
        description=f"{len(manifest.folds)} fold models, preset {manifest.preset}; for research use only",
        properties=[Property(name=f"tmi:{key}", value=value) for key, value in sorted(manifest.versions.items())
                    if key in ("python", "machine")],
    )  # fmt: skip
    # No time: an export of the same run gives the same document. That of the export is in the manifest.
    metadata = BomMetaData(component=model)
    metadata.timestamp = None  # type: ignore[assignment]
    identity = [
        to_json(manifest.run),
        to_json(manifest.golden),
        manifest.referenced_files(),
        dict(manifest.versions),
        names,
    ]
    bom = Bom(
        components=components.values(),
        serial_number=uuid.UUID(sha256_json(identity)[:32], version=4),
        metadata=metadata,
    )
    bom.register_dependency(model, [components[ROOT]] if ROOT in components else [])
    for name in names:
        required = _required_names(installed[name], {EXTRA} if name == ROOT else set())
        bom.register_dependency(components[name], [components[n] for n in sorted(required) if n in components])
    text = str(JsonV1Dot6(bom).output_as_string(indent=2)) + "\n"
    return text if earlier is None else _with_earlier_components(text, earlier)


def _with_earlier_components(text: str, before: Mapping[str, Any]) -> str:
    """Add the components and dependencies of an earlier document that a document does not have."""
    document = parse_json(text)
    added = False
    for key, name in (("components", "bom-ref"), ("dependencies", "ref")):
        known = {entry[name] for entry in document[key]}
        missing = [entry for entry in before.get(key, []) if entry[name] not in known]
        document[key] = sorted([*document[key], *missing], key=lambda entry: str(entry[name]))
        added |= bool(missing)
    return json.dumps(document, indent=2) + "\n" if added else text


def _canonical_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _component(name: str, distribution: importlib.metadata.Distribution) -> Component:
    # PEP 639. Older metadata fields hold free text.
    expression, *_ = distribution.metadata.get_all("License-Expression") or [""]
    declared = LicenseAcknowledgement.DECLARED
    licences = [LicenseFactory().make_from_string(expression, license_acknowledgement=declared)] if expression else []
    return Component(
        name=name,
        version=distribution.version,
        bom_ref=f"{name}@{distribution.version}",
        purl=PackageURL(type="pypi", name=name, version=distribution.version),
        licenses=licences,
    )


def _dependency_closure(installed: Mapping[str, importlib.metadata.Distribution]) -> set[str]:
    """Names of the installed distributions that the root depends on, directly or not, including the root."""
    visited: set[tuple[str, frozenset[str]]] = set()
    queue = [(ROOT, frozenset({EXTRA}))]
    while queue:
        name, extras = queue.pop()
        if (name, extras) in visited or name not in installed:
            continue
        visited.add((name, extras))
        queue.extend(_requirements(installed[name], set(extras)))
    return {name for name, _ in visited}


def _required_names(distribution: importlib.metadata.Distribution, extras: set[str]) -> set[str]:
    return {name for name, _ in _requirements(distribution, extras)} - {_canonical_name(distribution.metadata["Name"])}


def _requirements(distribution: importlib.metadata.Distribution, extras: set[str]) -> list[tuple[str, frozenset[str]]]:
    """Requirements of a distribution on this platform with these extras: (name, extras of the requirement)."""
    requirements = []
    for text in distribution.requires or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            requirements.append((_canonical_name(requirement.name), frozenset(requirement.extras)))
    return requirements
