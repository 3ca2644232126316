"""`sbom.cdx.json`: the software that made and judged a bundle, as a CycloneDX 1.6 bill of materials.

Components are what `tmi-clnet[export]` draws in and is installed, with versions and package URLs; the versions that a
serving machine brings are its own and stand in its predictions.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import re
import uuid
from collections.abc import Mapping

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseAcknowledgement
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement

from tmi.runtime.bundle.manifest import Manifest
from tmi.toolkit.storage.hashing import sha256_json

ROOT = "tmi-clnet"
EXTRA = "export"


def sbom(manifest: Manifest) -> str:
    """The document's text; the same bundle and the same packages give the same text."""
    installed = {_canonical_name(d.metadata["Name"]): d for d in importlib.metadata.distributions()}
    names = sorted(_closure(installed))
    components = {name: _component(name, installed[name]) for name in names}
    run = str(manifest.run.get("name", "model"))
    model = Component(
        name=f"tmi-bundle:{run}",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"bundle:{run}",
        version=manifest.created,
        description=f"{len(manifest.folds)} fold models, preset {manifest.preset}; for research use only",
        properties=[Property(name=f"tmi:{key}", value=value) for key, value in sorted(manifest.versions.items())
                    if key in ("python", "machine")],
    )  # fmt: skip
    bom = Bom(
        components=components.values(),
        serial_number=uuid.UUID(sha256_json([manifest.created, manifest.golden, names])[:32], version=4),
        metadata=BomMetaData(component=model, timestamp=datetime.datetime.fromisoformat(manifest.created)),
    )
    bom.register_dependency(model, [components[ROOT]] if ROOT in components else [])
    for name in names:
        needs = [components[n] for n in sorted(_required_names(installed[name], {EXTRA} if name == ROOT else set()))
                 if n in components]  # fmt: skip
        bom.register_dependency(components[name], needs)
    return str(JsonV1Dot6(bom).output_as_string(indent=2)) + "\n"


def _canonical_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _component(name: str, found: importlib.metadata.Distribution) -> Component:
    said, *_ = found.metadata.get_all("License-Expression") or [""]  # PEP 639; older fields hold free text
    declared = LicenseAcknowledgement.DECLARED
    licences = [LicenseFactory().make_from_string(said, license_acknowledgement=declared)] if said else []
    return Component(
        name=name,
        version=found.version,
        bom_ref=f"{name}@{found.version}",
        purl=PackageURL(type="pypi", name=name, version=found.version),
        licenses=licences,
    )


def _closure(installed: Mapping[str, importlib.metadata.Distribution]) -> set[str]:
    """Names of installed distributions that the root draws in, itself included."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(ROOT, frozenset({EXTRA}))]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen or name not in installed:
            continue
        seen.add((name, extras))
        for required, theirs in _requirements(installed[name], set(extras)):
            waiting.append((required, theirs))
    return {name for name, _ in seen}


def _required_names(found: importlib.metadata.Distribution, extras: set[str]) -> set[str]:
    return {name for name, _ in _requirements(found, extras)} - {_canonical_name(found.metadata["Name"])}


def _requirements(found: importlib.metadata.Distribution, extras: set[str]) -> list[tuple[str, frozenset[str]]]:
    """What a distribution requires on this machine with these extras: names, and the extras asked of them."""
    wanted = []
    for text in found.requires or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            wanted.append((_canonical_name(requirement.name), frozenset(requirement.extras)))
    return wanted
