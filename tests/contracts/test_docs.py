"""The documentation says what is there."""

import re

from tests.contracts.tree import PACKAGE, ROOT, parsed

README = (ROOT / "README.md").read_text(encoding="utf-8")


def tree_of_package():
    """Names that the README's tree lists below src/ditscope/."""
    block = re.search(r"^src/ditscope/\n(.*?)^```", README, re.M | re.S).group(1)
    return [line.split()[0].rstrip("/") for line in block.splitlines() if line.strip()]


def is_part(path):
    return path.suffix == ".py" or (path.is_dir() and any(path.glob("[!_.]*")))


def test_readme_lists_every_part_of_the_package():
    listed = tree_of_package()
    present = {path.name for path in PACKAGE.iterdir() if is_part(path)}
    assert sorted(listed) == sorted(present)


def test_readme_lists_every_folder():
    not_ours = {
        "runs",
        "evaluations",
        "trainings",
        "build",
        "dist",
        "node_modules",
    }  # as .gitignore
    listed = set(re.findall(r"^(\w+)/ ", README, re.M)) | {"src"}
    present = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"}
    assert present - not_ours == listed


def test_links_lead_somewhere():
    broken = [
        (page.name, link)
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert broken == []


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 60


def test_modules_say_why_they_exist():
    import ast

    silent = [path for path in PACKAGE.rglob("*.py") if not ast.get_docstring(parsed(path))]
    assert silent == []
