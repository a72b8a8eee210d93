"""The files of the repository, for the tests that hold them to the rules."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "ditscope"
TEXT = {".py", ".md", ".toml", ".txt", ".json", ".yml", ".yaml", ""}
OUTSIDE = {"LICENSE", "data/emoji"}


def python_files(*folders: str) -> list[Path]:
    """Every Python file below these folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def text_files() -> list[Path]:
    """Every text file that is ours: sources, tests, scripts, docs and settings."""
    folders = ["src", "tests", "scripts", "docs", "benchmarks", "examples", ".ci"]
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    return sorted(
        path
        for path in found
        if path.suffix in TEXT
        and "__pycache__" not in path.parts
        and not path.name.startswith("LICENSE")
    )


def module_name(path: Path) -> str:
    """`src/ditscope/core/axes.py` as `ditscope.core.axes`."""
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parsed(path: Path) -> ast.Module:
    """The syntax tree of one file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def modules_below(*names: str) -> list[str]:
    """Every module of these packages or modules of ditscope, by dotted name."""
    found = map(module_name, python_files("src"))
    return [
        name for name in found if any(name == top or name.startswith(f"{top}.") for top in names)
    ]
