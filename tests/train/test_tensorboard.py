"""Curves for TensorBoard: the numbers of the log, also over a resumption."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ditscope.errors import ResourceError
from ditscope.train.tensorboard import FOLDER
from tests.train.tiny import config, run


def test_curves_are_those_of_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    asked = config(steps=12, log_every=2, save_every=4, health_every=4, tensorboard=True)
    run(asked.model_copy(update={"steps": 6}), tmp_path / "t")
    (tmp_path / "t" / "ckpt-0000006" / "state.json").write_text("damaged: on from step 4")
    run(asked, tmp_path / "t")
    lines = [json.loads(line) for line in (tmp_path / "t" / "log.jsonl").read_text().splitlines()]
    reports = {line["step"]: line for line in lines if "event" not in line}
    found = EventAccumulator(str(tmp_path / "t" / FOLDER)).Reload()
    for name in ("loss", "gradient_norm", "learning_rate", "pictures_per_second"):
        points = found.Scalars(f"training/{name}")
        assert [point.step for point in points] == [2, 4, 6, 8, 10, 12]
        assert [point.value for point in points] == pytest.approx(
            [reports[point.step][name] for point in points], rel=1e-6
        )
    (last,) = [line for line in lines if line.get("event") == "attention" and line["step"] == 12]
    for layer in last["layers"]:
        points = found.Scalars(f"attention entropy/{layer['site']}")
        assert [point.step for point in points] == [4, 8, 12]
        assert points[-1].value == pytest.approx(layer["entropy"], rel=1e-6)


def test_without_the_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ResourceError, match="needs tensorboard, which is not installed"):
        run(config(steps=1, tensorboard=True), tmp_path / "t")
