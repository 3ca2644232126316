"""The files of docs/deploy: options and paths that exist, one uid, one port, no rights, and a context without data."""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from factories.paths import ROOT
from tmi.runtime.service.app import HEALTH
from tmi.toolkit.cli.main import LazyGroup

DEPLOY = ROOT / "docs" / "deploy"
UID = 10001


def _containerfile() -> str:
    return re.sub(r"\\\n\s*", "", (DEPLOY / "Containerfile").read_text())


def _instruction(name: str) -> str:
    """The last instruction of a name."""
    return re.findall(rf"^{name} (.*)$", _containerfile(), re.M)[-1]


def _containers() -> dict[str, dict[str, Any]]:
    """Containers of the manifests with the pod that they are in, by file."""
    deployment, _ = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    inference = yaml.safe_load((DEPLOY / "kserve.yaml").read_text())
    pods = {"kubernetes.yaml": deployment["spec"]["template"]["spec"], "kserve.yaml": inference["spec"]["predictor"]}
    return {name: {**pod["containers"][0], "pod": pod} for name, pod in pods.items()}


def _commands() -> dict[str, list[str]]:
    """Words after `tmi` of every file."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["tmi"]
    return {
        "Containerfile": json.loads(_instruction("CMD")),
        "compose.yaml": compose["command"],
        **{name: container["args"] for name, container in _containers().items()},
    }


@pytest.mark.parametrize("file", ["Containerfile", "compose.yaml", "kubernetes.yaml", "kserve.yaml"])
def test_command_is_one_of_the_service(file):
    """Every word is accepted by the parser of `tmi serve`, the token is required, and the port is the exposed one."""
    name, *words = _commands()[file]
    parsed = LazyGroup(name="tmi").get_command(None, name).make_context(name, list(words)).params
    assert (name, str(parsed["bundle"]), parsed["port"]) == ("serve", "/bundle", 8080)
    assert parsed["token_file"] is not None
    assert "8080" in _instruction("EXPOSE").split()


def test_image_has_no_rights_and_no_torch():
    """The last stage runs as the uid of the manifests; the extras are those of serving; the base is an argument."""
    text = _containerfile()
    assert _instruction("USER") == f"{UID}:{UID}"
    assert "'.[serve,openvino,radiomics]'" in text
    assert re.findall(r"^FROM (.*)$", text, re.M) == ["${BASE} AS build", "${BASE}"]
    assert HEALTH[1] in text


@pytest.mark.parametrize("file", ["kubernetes.yaml", "kserve.yaml"])
def test_pod_is_restricted(file):
    """The uid is the image's; no privilege, no capability, no writable root; each mount has a volume."""
    container = _containers()[file]
    pod = container["pod"]
    assert pod["securityContext"]["runAsUser"] == UID
    assert pod["securityContext"]["runAsNonRoot"] is True
    security = container["securityContext"]
    assert (security["allowPrivilegeEscalation"], security["readOnlyRootFilesystem"]) == (False, True)
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    token = container["args"][container["args"].index("--token-file") + 1]
    assert any(token.startswith(mount["mountPath"]) for mount in container["volumeMounts"])


@pytest.mark.parametrize("file", ["kubernetes.yaml", "kserve.yaml"])
def test_probes_are_paths_without_a_token(file):
    """A probe sends no token: only the health has a path without one."""
    probes = {name: probe["httpGet"]["path"] for name, probe in _containers()[file].items() if name.endswith("Probe")}
    assert probes["readinessProbe"] == HEALTH[1]
    assert set(probes.values()) <= set(HEALTH)


def test_service_leads_to_the_ports_of_the_container():
    """Names of the ports agree, and the ports are those of the command."""
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8080, "grpc": 8001}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == set(ports)
    assert container["args"][container["args"].index("--grpc-port") + 1] == "8001"
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_compose_is_restricted():
    """The service is reachable from its machine alone, with the rights of the pods."""
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["tmi"]
    assert service["ports"] == ["127.0.0.1:8080:8080"]
    assert (service["user"], service["read_only"], service["cap_drop"]) == (f"{UID}:{UID}", True, ["ALL"])


def test_context_holds_the_sources_alone():
    """Cohorts, runs and bundles in a clone never reach an image: the ignore file lists what is sent."""
    lines = (ROOT / ".dockerignore").read_text().split()
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert lines[0] == "*"
    assert kept == {
        "LICENSE", "NOTICE", "README.md", "constraints.txt", "export", "pyproject.toml", "runtime", "toolkit",
        "training",
    }  # fmt: skip
    assert not any(fnmatch.fnmatch(name, pattern) for name in ("demo", "bundle", ".git", ".venv") for pattern in kept)
    assert all((ROOT / name).exists() for name in kept)


def test_workflow_builds_this_file():
    """The workflow names the files that exist, and predicts without network and rights."""
    text = Path(ROOT / ".github" / "workflows" / "image.yml").read_text()
    assert "docs/deploy/Containerfile" in text
    assert "--read-only" in text
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
