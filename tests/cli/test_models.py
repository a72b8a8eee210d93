"""`ditscope models`: what is printed is what the papers and the golden counts say."""

import json
from pathlib import Path

import pytest

from ditscope.cli import models as command
from ditscope.core.pipeline_config import PipelineConfig, write_pipeline_config
from tests.model.golden import TABLES, TINY


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package whose bundled models are those below the folder that is returned."""
    monkeypatch.setattr(command, "files", lambda name: tmp_path / name)
    (tmp_path / "ditscope" / "bundled").mkdir(parents=True)
    return tmp_path / "ditscope" / "bundled"


def bundle(root: Path, name: str) -> None:
    (root / name).mkdir()
    write_pipeline_config(
        root / name,
        PipelineConfig(
            model=TINY.model_dump(mode="json"),
            process={"kind": "flow"},
            codec={"kind": "rgb"},
            labels=("cat", "dog", "bird"),
        ),
    )


def test_the_published_variants_are_listed_with_cost_and_quality(cli, package):
    code, out, err = cli("models")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len([line for line in lines if line.startswith("DiT-")]) == 12 + 2  # two have notes
    (xl,) = (line.split() for line in lines if line.startswith("DiT-XL/2 "))
    assert xl[1:8] == ["1152", "28", "16", "2", "675,129,632", "118.621", "19.47"]
    assert xl[8:] == ["authors"]
    assert max(map(len, lines[:13])) <= 80
    (small,) = (line for line in lines if line.startswith("DiT-S/2 "))
    assert small.split()[-2:] == ["68.40", "summaries"]
    assert "FID: FID-50K, ImageNet 256 x 256, 400K training steps, no guidance" in out
    assert "2.27 at 256 px (7M steps), 3.04 at 512 px (3M steps)" in out


def test_json_holds_the_exact_numbers(cli, package):
    tree = json.loads(cli("models", "--json").out)
    found = {row["name"]: row for row in tree["models"]}
    assert found.keys() == TABLES["params"].keys()
    for name, count in TABLES["params"].items():
        assert found[name]["parameters"] == count["total"]
        assert found[name]["trainable_parameters"] == count["trainable"]
    assert found["DiT-S/8"]["fid"] == 153.6
    assert "400K training steps" in tree["fid_protocol"]


def test_a_bundled_model_comes_first_with_its_own_numbers(cli, package):
    bundle(package, "tiny")
    (package / "notes").mkdir()
    row = json.loads(cli("models", "--json").out)["models"][0]
    assert (row["name"], row["bundled"], row["fid"]) == ("tiny", True, None)
    assert row["parameters"] == TINY.architecture.parameters
    assert row["multiply_adds"] == TINY.architecture.multiply_adds
    first = cli("models").out.splitlines()[1]
    assert first.startswith("tiny ")
    assert first.split()[-1] == "bundled"


def test_a_damaged_bundled_model_is_a_typed_error(cli, package):
    bundle(package, "tiny")
    (package / "tiny" / "config.json").write_text("{")
    code, _, err = cli("models")
    assert code == 3
    assert "tiny/config.json: not JSON" in err
