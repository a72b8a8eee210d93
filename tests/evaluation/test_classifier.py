"""The bundled judge: what it knows, how sure that is, and that its training is exactly resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ditscope.data.scenes import EmojiScenes
from ditscope.errors import BadCheckpoint, NumericalError
from ditscope.evaluation import classifier_training
from ditscope.evaluation.accuracy import wilson
from ditscope.evaluation.classifier import (
    EmojiClassifier,
    bundled_classifier,
    load_classifier,
    save_classifier,
)
from ditscope.evaluation.classifier_training import (
    HELD_OUT_SEED,
    TRAINING_SEED,
    correct,
    make_classifier,
    train_classifier,
)
from ditscope.evaluation.sources import REFERENCE_SEED, SCENES_SEED
from ditscope.model.weights import save_weights

STEPS = 6


def test_the_bundled_one_names_all_classes_of_the_data() -> None:
    network, facts = load_classifier(bundled_classifier())
    assert facts.class_names == EmojiScenes.class_names
    assert bundled_classifier().stat().st_size < 4_000_000
    assert len({TRAINING_SEED, HELD_OUT_SEED, REFERENCE_SEED, SCENES_SEED, 0}) == 5
    assert facts.training["scenes_seed"] == TRAINING_SEED
    low, _ = wilson(facts.held_out_correct, facts.held_out_count)
    assert facts.held_out_count >= 10_000 and low > 0.98
    count = 3 * len(facts.class_names)  # every class in every style once
    assert correct(network, SCENES_SEED, count) / count >= 0.98


def test_interrupted_training_ends_at_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier_training, "SAVE_EVERY", 2)
    losses: list[float] = []

    def stop(step: int, loss: float) -> None:
        losses.append(loss)
        if step == 5:  # the save of step 4 is the newest
            raise KeyboardInterrupt

    whole = train_classifier(tmp_path / "whole", STEPS, batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(tmp_path / "parts", STEPS, batch_size=8, report=stop)
    again = train_classifier(
        tmp_path / "parts", STEPS, batch_size=8, report=lambda _, loss: losses.append(loss)
    )
    assert len(losses) == 5 + 2 and losses[4] == losses[5]  # step 5 was done twice
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    with pytest.raises(BadCheckpoint, match="has 6 steps; expected at most 5"):
        train_classifier(tmp_path / "parts", 5, batch_size=8)


def test_training_lowers_the_loss_and_the_file_is_what_was_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier_training, "BATCH", 8)
    losses: list[float] = []
    facts = make_classifier(
        tmp_path / "training", tmp_path / "judge.safetensors", 30, held_out=24,
        report=lambda _, loss: losses.append(loss),
    )  # fmt: skip
    assert sum(losses[-5:]) < sum(losses[:5]) and len(losses) == 30
    network, read = load_classifier(tmp_path / "judge.safetensors")
    assert read == facts and facts.held_out_count == 24
    assert correct(network, HELD_OUT_SEED, 24) == facts.held_out_correct


def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path, monkeypatch) -> None:
    broken = torch.full((8, 3, 64, 64), torch.nan), torch.zeros(8, dtype=torch.int64)
    monkeypatch.setattr(classifier_training, "training_batch", lambda *_: broken)
    with pytest.raises(NumericalError, match="the loss of step 0 is nan"):
        train_classifier(tmp_path / "training", 2, batch_size=8)
    assert not list((tmp_path / "training").glob("ckpt-*"))


def test_files_that_are_no_classifier(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_weights(weights, EmojiClassifier(3).state_dict())
    with pytest.raises(BadCheckpoint, match="is not the file of a classifier"):
        load_classifier(weights)
    facts = load_classifier(bundled_classifier())[1]
    save_classifier(weights, EmojiClassifier(3), facts)
    with pytest.raises(BadCheckpoint, match=r"wrong shape: head\.weight"):
        load_classifier(weights)
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        load_classifier(tmp_path / "none.safetensors")


def test_features_do_not_depend_on_the_rest_of_the_batch() -> None:
    network, _ = load_classifier(bundled_classifier())
    pictures = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        together, alone = network(pictures)[0], network(pictures[2:3])[0]
    torch.testing.assert_close(together[2:3], alone, rtol=1e-5, atol=1e-5)
