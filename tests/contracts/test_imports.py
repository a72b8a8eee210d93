"""What importing a part of ditscope may load, seen in fresh processes, where nothing hides it."""

import ast
import json
import subprocess
import sys

import pytest

import ditscope
from tests.contracts.tree import PACKAGE, module_name, modules_below, parsed, python_files

HEAVY = [
    "torch",
    "diffusers",
    "xarray",
    "zarr",
    "matplotlib",
    "numpy",
    "seaborn",
    "scipy",
    "pandas",
]
READING = [
    "ditscope.errors",
    "ditscope.core",
    "ditscope.runs",
    "ditscope.analysis",
    "ditscope.plot",
]


def loaded_after(code: str) -> set[str]:
    """Names of the modules in a new Python after running `code`."""
    report = "import sys, json; json.dump(sorted(sys.modules), sys.stdout)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import ditscope; dir(ditscope)",
        "import ditscope.cli.main as main; main.main(['--help'])",
        "import ditscope.cli.main as main; main.main(['--version'])",
    ],
    ids=["import", "--help", "--version"],
)
def test_starting_loads_nothing_heavy(code):
    assert loaded_after(code).isdisjoint(HEAVY)


def test_reading_side_leaves_torch_out():
    names = modules_below(*READING)
    assert "ditscope.core.manifest" in names
    loaded = loaded_after("\n".join(f"import {name}" for name in names))
    assert loaded >= set(names)
    assert loaded.isdisjoint({"torch", "diffusers", "transformers", "accelerate"})


def test_public_names_survive_the_import_of_every_module():
    # Importing ditscope.x sets the attribute x of ditscope: no function may have that name.
    parts = [name.split(".") for name in modules_below("ditscope")]
    assert {part[1] for part in parts if len(part) == 2}.intersection(ditscope.__all__) == {"plot"}
    below_plot = {part[2] for part in parts if len(part) == 3 and part[1] == "plot"}
    assert below_plot.isdisjoint(ditscope.plot.__all__)


@pytest.mark.parametrize("module", [ditscope, ditscope.plot], ids=lambda module: module.__name__)
def test_every_public_name_resolves(module):
    assert [name for name in module.__all__ if getattr(module, name, None) is None] == []
    assert set(module.__all__) <= set(dir(module))
    assert len(set(module.__all__)) == len(module.__all__)


def test_static_and_lazy_names_agree():
    """What a type checker is told about `ditscope` is what Python does."""
    tree = parsed(PACKAGE / "__init__.py")
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    static = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert static.pop("plot") == "ditscope"
    assert static == ditscope._HOME
    assert {*static, "plot", "__version__"} == set(ditscope.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        _ = ditscope.smaple


@pytest.mark.parametrize(
    ("name", "package"),
    [("load", "torch"), ("watch", "torch"), ("sample", "torch"), ("open_run", "numpy")],
)
def test_a_name_that_needs_a_missing_package_says_what_to_install(name, package):
    code = f"""
import sys
sys.modules[{package!r}] = None  # as where it is not installed
import ditscope
from ditscope.errors import ResourceError
try:
    getattr(ditscope, {name!r})
except ResourceError as error:
    assert str(error) == (
        "ditscope.{name} needs {package}, which is not installed\\n  pip install {package}"
    ), error
else:
    raise AssertionError
"""
    loaded_after(code)


def test_a_module_of_ours_that_is_missing_is_no_advice_to_install_it():
    loaded_after("""
import sys
sys.modules["ditscope.pipeline"] = None
import ditscope
try:
    ditscope.load
except ModuleNotFoundError as error:
    assert error.name == "ditscope.pipeline"
else:
    raise AssertionError
""")


def test_dynamic_imports_are_few_and_known():
    """Public names load late by one, `runs` reaches the making side by one, in replay, and a user's
    own feature extractor is known by its name only."""
    callers = {
        module_name(path)
        for path in python_files("src")
        for node in ast.walk(parsed(path))
        if (isinstance(node, ast.Attribute) and node.attr == "import_module")
        or (isinstance(node, ast.Name) and node.id in ("import_module", "__import__"))
    }
    own = "ditscope.evaluation.extractors"
    assert callers == {"ditscope", "ditscope.plot", "ditscope.runs.replay", own}


def test_every_folder_is_a_package():
    folders = {path.parent for path in python_files("src")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
