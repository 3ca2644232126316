"""The wheel with each extra, by pip alone: nothing is compiled, and no user's extra brings the developers' tools."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from factories.cases import write_case
from factories.paths import ROOT
from factories.planted_faults import write_key_pair

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
DEVELOPERS = ("dev", "docs")
"""Extras of those who change the code."""
GPU = ("trt", "gpu")
"""Extras with gigabytes of NVIDIA's libraries, which are of use on a machine with a GPU only."""
SHARED = {"psutil"}
"""Developers' tools that a library of a user needs as well."""
USERS = [extra for extra in EXTRAS if extra not in DEVELOPERS]
SOURCES_WITHOUT_CODE = ("tensorrt-rtx", "tensorrt-rtx-cu13")
"""Packages that their publisher uploads as source archives: they hold no code, only the names of wheels."""
COMMANDS = {
    "": ["predict {case} --bundle {bundle} --json"],
    "openvino": ["predict {case} --bundle {bundle} --engine openvino --json"],
    "radiomics": ["synth made --cases 2"],
    "dicom": ["import made --ct {case}/ct.nii.gz --mask {case}/liver.nii.gz --clinical {case}/clinical.json"],
    "torch": ["predict {case} --bundle {bundle} --engine torchscript --json"],
    "train": ["synth made --cases 4", "train made --out run --preset tiny --folds 2 --plan"],
    "track": [],
    "explain": ["explain {case} --run {run} --out maps --quick"],
    "export": ["export {run} --engine onnx --out exported"],
    "trt-rtx": ["export {run} --engine trt-rtx --precision fp16 --target sm80 --out exported"],
    "sign": ["sign {copy} --key {key}"],
    "serve": ["serve --help"],
    "all": ["synth made --cases 2"],
}
"""Extra -> the commands that are run with it, besides `tmi doctor`."""
PIP_LINE = re.compile(r"pip install [^`\"\n]*?'tmi-clnet\[([\w,{}.-]+)\]'")


def requirements(names: list[str]) -> dict[str, set[str]]:
    """Distribution -> its extras, of these requirements and of everything that they bring on this machine."""
    found: dict[str, set[str]] = {}
    open_ = [Requirement(name) for name in names]
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        if name == "tmi-clnet":
            open_ += [Requirement(r) for extra in requirement.extras for r in EXTRAS[extra]]
            continue
        if name in found and requirement.extras <= found[name]:
            continue
        found[name] = found.get(name, set()) | requirement.extras
        try:
            lines = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        for needed in map(Requirement, lines):
            extras = ("", *requirement.extras)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                open_.append(needed)
    return found


def compiled_here(names: list[str]) -> list[str]:
    """Distributions that were built on this machine: their tag is that of its platform, not one that indices accept."""
    found = []
    for name in requirements(names):
        try:
            wheel = distribution(name).read_text("WHEEL") or ""
        except PackageNotFoundError:
            continue
        if re.search(r"^Tag: .*-linux_", wheel, re.M):  # wheels of an index have manylinux or musllinux
            found.append(name)
    return sorted(found)


@pytest.mark.parametrize("extra", USERS)
def test_user_extra_brings_no_developer_tool(extra):
    """What `dev` and `docs` add is in no other extra."""
    brought = set(requirements(EXTRAS[extra]))
    tools = {canonicalize_name(Requirement(r).name) for name in DEVELOPERS for r in EXTRAS[name]}
    assert brought & (tools - SHARED) == set()


def test_all_has_every_extra_of_a_user_without_a_gpu():
    """`all` is the sum of the other extras; those of a GPU are left out."""
    each = [requirements(EXTRAS[extra]) for extra in USERS if extra not in ("all", *GPU)]
    assert set(requirements(EXTRAS["all"])) == set().union(*each)


@pytest.mark.parametrize("extra", ["", *USERS, *DEVELOPERS])
def test_extra_compiles_nothing(extra):
    """Each package of an extra, and of what it brings, was installed from a wheel of the index."""
    assert compiled_here(EXTRAS[extra] if extra else PROJECT["dependencies"]) == []


def test_compiled_package_is_found():
    """The check finds pyradiomics, which is compiled here for the tests."""
    assert compiled_here(["pyradiomics"]) == ["pyradiomics"]


def test_build_section_names_what_the_build_imports():
    """The wheel is built by the backend alone, which is declared."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    backend = build["build-backend"].partition(".")[0]
    assert backend in {canonicalize_name(Requirement(line).name) for line in build["requires"]}


def test_every_named_extra_exists():
    """Each `pip install 'tmi-clnet[...]'` of sources and documentation names extras that exist."""
    folders = ("toolkit", "runtime", "training", "export", "docs")
    files = [f for folder in folders for f in (ROOT / folder).rglob("*") if f.suffix in (".py", ".md")]
    named = {
        (file.name, extra)
        for file in (*files, ROOT / "README.md")
        for match in PIP_LINE.finditer(file.read_text(encoding="utf-8"))
        for extra in match[1].split(",")
        if "{" not in extra and extra.strip(".") and extra != "EXTRA"  # stands for any
    }
    assert len(named) > 8
    assert [(file, extra) for file, extra in named if extra not in EXTRAS] == []


def test_release_publishes_nothing_by_itself():
    """The workflow builds, checks and attests; it has no step that uploads to an index."""
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert any(step.get("uses", "").startswith("actions/attest-build-provenance@") for step in steps)
    assert any("twine check --strict" in step.get("run", "") for step in steps)
    assert "twine upload" not in text
    assert "gh-action-pypi-publish" not in text


def run(*command: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(part) for part in command]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, env={**inherited, **environment})


def size_mb(folder: Path) -> float:
    """Size of the files of a folder in MB."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()) / 1e6


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    done = run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT)
    if done.returncode and "No matching distribution found" in done.stderr:
        pytest.skip("pip cannot reach a package index")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def places(tmp_path_factory, nano_bundle, nano_run) -> dict[str, Path]:
    """What the commands of `COMMANDS` read."""
    folder = tmp_path_factory.mktemp("places")
    key, _ = write_key_pair(folder, "signer")
    copy = shutil.copytree(nano_bundle, folder / "copy")
    return {"case": write_case(folder / "P000"), "bundle": nano_bundle, "run": nano_run, "copy": copy, "key": key}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("extra", ["", *(extra for extra in USERS if extra not in GPU)])
def test_wheel_with_extra_runs_in_an_empty_environment(wheel, places, tmp_path, extra):
    """Pip alone installs the extra from wheels, `tmi doctor` lists it as installed, and one command runs."""
    environment = tmp_path / "venv"
    assert run(sys.executable, "-m", "venv", environment).returncode == 0
    python = environment / "bin" / "python"
    target = f"{wheel}[{extra}]" if extra else wheel
    empty, start = size_mb(environment), time.perf_counter()
    wheels = ("--only-binary", ":all:", "--no-binary", ",".join(SOURCES_WITHOUT_CODE))
    done = run(python, "-m", "pip", "install", "--quiet", *wheels, target)
    assert done.returncode == 0, done.stderr
    packages = len(list(environment.glob("lib/python*/site-packages/*.dist-info")))
    seconds = time.perf_counter() - start
    print(
        f"\n| {extra or '(none)'} | {packages} | {size_mb(environment) - empty:,.0f} | {seconds:.0f} |"
    )  # docs/install.md
    for line in ["doctor", *COMMANDS[extra]]:
        words = line.format_map(places).split()
        done = run(environment / "bin" / "tmi", *words, cwd=tmp_path, HOME=str(tmp_path / "home"))
        assert done.returncode == 0, f"tmi {line}: {done.stdout}{done.stderr}"
        if words == ["doctor"] and extra not in ("", "all"):
            assert re.search(rf"^  {extra} +installed", done.stdout, re.M), done.stdout
