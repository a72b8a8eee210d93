"""Changing a run on disk as an accident or a stranger would, without our own writer."""

import hashlib
import json
from pathlib import Path

import pytest

from ditscope.errors import BadRun
from ditscope.runs.reader import open_run


def digest(data: bytes) -> dict[str, object]:
    """The record of a file that holds `data`."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def seal(folder: Path) -> None:
    """Make `COMPLETE` agree with `run.json`."""
    data = (folder / "run.json").read_bytes()
    (folder / "COMPLETE").write_text(f"{hashlib.sha256(data).hexdigest()}  run.json\n")


def forge(folder: Path, name: str, data: bytes) -> None:
    """Replace a listed file and everything that vouches for it."""
    (folder / name).write_bytes(data)
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: digest(data)}))


def edit_manifest(folder: Path, edit) -> None:
    """Let `edit` change the parsed `run.json`; seal it again."""
    manifest = json.loads((folder / "run.json").read_text())
    edit(manifest)
    (folder / "run.json").write_text(json.dumps(manifest))
    seal(folder)


def edit_document(folder: Path, name: str, edit) -> None:
    """Let `edit` change a parsed `zarr.json`, and forge it."""
    document = json.loads((folder / name).read_text())
    edit(document)
    forge(folder, name, json.dumps(document).encode())


def refused(folder, **options):
    """The message with which a run is refused when it is opened."""
    with pytest.raises(BadRun) as caught:
        open_run(folder, **options)
    assert caught.value.exit_code == 3
    return str(caught.value)
