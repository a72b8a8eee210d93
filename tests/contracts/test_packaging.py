"""pyproject.toml and constraints.txt say what the sources need, no more and no less."""

import ast
import os
import re
import sys
import tomllib

import pytest

import ditscope
from tests.contracts.tree import ROOT, parsed, python_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMES_WITH_TORCH = {"triton"}  # where there is a GPU for it
IMPORTED_AS = {
    "google-crc32c": "google_crc32c",
    "huggingface-hub": "huggingface_hub",
    "pillow": "PIL",
}


IMPORTED_BY_TORCH = {"tensorboard"}


def name_of(requirement):
    return re.match(r"[\w-]+", requirement).group()


def declared():
    return {name_of(requirement) for requirement in PROJECT["dependencies"]}


def imported():
    """Third-party packages that the sources import, also inside functions."""
    names = set()
    for path in python_files("src"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"ditscope"}


def extras():
    """Packages of the extras that users ask for; `dev` is ours."""
    groups = PROJECT["optional-dependencies"]
    return {name_of(each) for extra, group in groups.items() if extra != "dev" for each in group}


def test_dependencies_are_those_imported():
    found = imported() - COMES_WITH_TORCH
    wanted = (declared() | extras()) - IMPORTED_BY_TORCH
    assert {IMPORTED_AS.get(name, name) for name in wanted} == found


def test_constraints_pin_every_dependency():
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split():
        name, version = line.split("==")
        pinned[name.lower().replace("_", "-")] = version
    extras = {name_of(r) for group in PROJECT["optional-dependencies"].values() for r in group}
    assert declared() | extras <= set(pinned)
    assert [version for version in pinned.values() if "+" in version] == []  # no local build


def test_nothing_unsafe_by_choice_of_package():
    assert declared().isdisjoint({"torchvision", "lightning", "hydra-core", "python-multipart"})


def test_version_is_the_newest_of_the_changelog():
    entries = re.findall(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert entries[0] == ditscope.__version__


@pytest.mark.skipif(os.name != "posix", reason="file modes")
@pytest.mark.parametrize(
    "path",
    [path for path in (ROOT / "scripts").iterdir() if path.is_file()] + [ROOT / ".ci" / "run"],
    ids=lambda path: path.name,
)
def test_scripts_can_be_run(path):
    assert os.access(path, os.X_OK)
    assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env ")
