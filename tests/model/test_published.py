"""Published `.pt` files: what is read, and what is refused. C15 and C16 of docs/hardening.md.

Most cases call `convert`, which is what the child process runs; a few start the real child.
"""

import argparse
import io
import os
import subprocess
import sys
import zipfile

import pytest
import torch

from ditscope.core.variants import VARIANTS, variant
from ditscope.errors import BadCheckpoint, ResourceError
from ditscope.model import published
from ditscope.model.config import DiTConfig
from ditscope.model.dit import build
from ditscope.model.infer import infer_config, table_note
from ditscope.model.layers import position_table
from ditscope.model.published import convert, load_published, read_pickled
from ditscope.model.weights import load_weights, save_weights
from tests.model.golden import MODELS, TINY, config, randomised, relative, tensors, weights


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ditscope" / "published"


@pytest.fixture
def no_child(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("a child process was started")

    monkeypatch.setattr(subprocess, "run", refuse)


def training_checkpoint(offset=1.0):
    model = weights(MODELS[0])
    return {
        "model": model,
        "ema": {name: tensor + offset for name, tensor in model.items()},
        "opt": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4)}}},
        "args": argparse.Namespace(model="DiT-XL/2", epochs=1400, data_path="/data"),
    }


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def same(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


def claiming(size, name, archive):
    """The bytes of a zip archive whose member `name` is said to unpack to `size` bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
        (member,) = (member for member in old.namelist() if member.endswith(name))
    data = bytearray(packed.getvalue())
    directory = data.rindex(member.encode()) - 46  # fields of the central directory entry
    assert data[directory : directory + 4] == b"PK\x01\x02"
    data[directory + 24 : directory + 28] = size.to_bytes(4, "little")
    return bytes(data)


class TestChild:
    """The way a user goes: a real child process each."""

    def test_a_bare_state_dict_computes_the_published_numbers(self, tmp_path, cache, monkeypatch):
        torch.save(weights(MODELS[0]), tmp_path / "DiT.pt")
        (tmp_path / "torch.py").write_text("raise SystemExit('imported from where the user is')")
        monkeypatch.chdir(tmp_path)
        found = load_published("DiT.pt", num_heads=3)
        assert found.notes == ()
        assert found.config == config(MODELS[0])
        numbers = tensors(MODELS[0])
        with torch.no_grad():
            out = found.build(file="DiT.pt")(numbers["in.x"], numbers["in.t"], numbers["in.y"])
        assert relative(out, numbers["out.forward"]) < 1e-6
        assert len(list(cache.iterdir())) == 1
        # The second time the converted copy is there, and no child is needed.
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("child started"))
        assert same(load_published("DiT.pt", num_heads=3).state, found.state)

    def test_a_payload_is_refused_and_not_run(self, tmp_path, cache):
        canary = tmp_path / "canary"
        torch.save({**weights(MODELS[0]), "extra": Payload(canary)}, tmp_path / "x.pt")
        with pytest.raises(BadCheckpoint) as caught:
            load_published(tmp_path / "x.pt")
        assert_refused_in_our_words(caught.value, canary)
        assert list(cache.iterdir()) == []

    @pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
    def test_a_bomb_is_stopped_by_the_memory_limit(self, tmp_path, cache):
        torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
        (tmp_path / "bomb.pt").write_bytes(claiming(3 << 30, "data.pkl", tmp_path / "x.pt"))
        with pytest.raises(BadCheckpoint, match="needs more memory than a file of its size"):
            read_pickled(tmp_path / "bomb.pt")
        assert list(cache.iterdir()) == []

    def test_too_slow_a_child_is_given_up(self, tmp_path, monkeypatch):
        torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
        monkeypatch.setattr(published, "SECONDS_ALLOWANCE", 0.001)
        with pytest.raises(BadCheckpoint, match="took too long"):
            read_pickled(tmp_path / "x.pt")


def assert_refused_in_our_words(error, canary):
    text = str(error)
    assert "system, which is code and not tensors; refused" in text
    assert "nothing of it was run" in text
    for advice in ("weights_only", "safe_globals", "trust"):
        assert advice not in text
    assert not canary.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["args", "ema", "opt"])
def test_a_payload_anywhere_is_refused_and_not_run(tmp_path, zipped, place):
    canary = tmp_path / "canary"
    checkpoint = {**training_checkpoint(), place: Payload(canary)}
    torch.save(checkpoint, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(BadCheckpoint) as caught:
        convert(tmp_path / "x.pt", tmp_path / "x.safetensors", "model")
    assert_refused_in_our_words(caught.value, canary)


def test_what_was_taken_of_a_training_checkpoint_is_told(tmp_path, monkeypatch):
    torch.save(training_checkpoint(), tmp_path / "0050000.pt")
    monkeypatch.setattr(published, "_convert_in_child", lambda a, b, part, _: convert(a, b, part))
    found = load_published(tmp_path / "0050000.pt", num_heads=3)
    assert '"ema" weights of the training checkpoint' in found.notes[0]
    assert same(found.state, training_checkpoint()["ema"])


def test_no_home_to_cache_in_is_no_obstacle(tmp_path, monkeypatch):
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
    (tmp_path / "file").touch()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))  # no folder can be made below a file
    monkeypatch.setattr(published, "_convert_in_child", lambda a, b, part, _: convert(a, b, part))
    assert same(read_pickled(tmp_path / "x.pt").state, {"w": torch.ones(2)})


def test_a_damaged_copy_in_the_cache_is_removed(tmp_path, cache, monkeypatch):
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
    monkeypatch.setattr(published, "_convert_in_child", lambda a, b, part, _: convert(a, b, part))
    read_pickled(tmp_path / "x.pt")
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:-3])
    with pytest.raises(BadCheckpoint, match=r"was damaged and has been removed\n  try again"):
        read_pickled(tmp_path / "x.pt")
    assert same(read_pickled(tmp_path / "x.pt").state, {"w": torch.ones(2)})


def test_no_space_for_the_converted_copy_is_a_resource_error(tmp_path, monkeypatch, no_child):
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
    free = published.check_space
    monkeypatch.setattr(published, "check_space", lambda folder, _: free(folder, 10**15))
    with pytest.raises(ResourceError, match="GB needed"):
        read_pickled(tmp_path / "x.pt")


def converted(tmp_path, tree, part=None):
    torch.save(tree, tmp_path / "x.pt")
    convert(tmp_path / "x.pt", tmp_path / "x.safetensors", part)
    return load_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("part", ["ema", "model"])
def test_a_half_of_a_training_checkpoint_can_be_chosen(tmp_path, part):
    checkpoint = training_checkpoint()
    assert same(converted(tmp_path, checkpoint, part), checkpoint[part])


def test_without_averaged_weights_the_model_is_taken(tmp_path):
    checkpoint = training_checkpoint()
    expected = checkpoint["model"]
    del checkpoint["ema"]
    assert same(converted(tmp_path, checkpoint), expected)
    with pytest.raises(BadCheckpoint, match="no weights under ema; it holds model, opt, args"):
        converted(tmp_path, checkpoint, "ema")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_lose_what_wrappers_put_before_them(tmp_path, prefix):
    plain = weights(MODELS[0])
    wrapped = {prefix + name: torch.nn.Parameter(tensor) for name, tensor in plain.items()}
    assert same(converted(tmp_path, {"ema": wrapped}), plain)


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ([torch.ones(2)], "holds a list, not tensors by name"),
        (torch.ones(2), "holds a Tensor"),
        ({}, "no weights under ema or model; it holds "),
        ({"epoch": 3, "name\x1b[2J": 1}, "it holds epoch, name\\u001b[2J"),
        ({"ema": {"w": 3}, "model": {}}, "no weights"),
        ({"w": torch.ones(2, dtype=torch.int64)}, "tensors that are not weights: w (torch.int64"),
        ({"w": torch.ones(2).double()}, "w (torch.float64"),
        ({"w": torch.ones(2).to_sparse()}, "tensors that are not weights: w"),
        ({"w": torch.empty(2, device="meta")}, "w (torch.float32, meta)"),
        ({"../../etc/x": torch.ones(2)}, "tensors that are not weights: ../../etc/x"),
        ({"a": torch.ones(2), "module.a": torch.ones(2)}, "two tensors are called a"),
        ({"w": torch.ones(1).expand(10**6, 10**6)}, "claims 4,000,000,000,000 bytes"),
    ],
)
def test_what_is_not_weights_is_refused(tmp_path, tree, problem):
    with pytest.raises(BadCheckpoint) as caught:
        converted(tmp_path, tree)
    assert problem in str(caught.value)
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.98])
def test_a_cut_file_is_refused(tmp_path, kept, zipped):
    torch.save(weights(MODELS[0]), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(BadCheckpoint, match="damaged, cut, or not written by"):
        convert(tmp_path / "x.pt", tmp_path / "out", None)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "empty file"), (b"<html>404</html>", "not safetensors"), (b"PK", "too short")],
)
def test_a_file_that_is_something_else_is_refused_unopened(tmp_path, no_child, content, problem):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=problem):
        load_published(tmp_path / "x.pt")


def test_the_first_bytes_decide_and_not_the_name(tmp_path, no_child):
    save_weights(tmp_path / "x.pt", weights(MODELS[1]))
    found = load_published(tmp_path / "x.pt", num_heads=4)
    assert found.config == config(MODELS[1])
    assert same(found.state, weights(MODELS[1]))


class TestInference:
    @pytest.mark.parametrize("name", VARIANTS)
    @pytest.mark.parametrize("settings", [{}, {"input_size": 64, "num_classes": 10}])
    def test_published_variants_are_recognised_from_shapes(self, name, settings):
        with torch.device("meta"):
            network = build(name, **settings)
        state = dict(network.state_dict())
        state["pos_embed"] = position_table(*network.config.grid, network.config.hidden_size)[None]
        assert infer_config(state) == network.config
        assert infer_config(state).num_heads == variant(name).num_heads

    @pytest.mark.parametrize(
        "settings",
        [
            {"input_size": (4, 16)},
            {"input_size": (16, 4)},
            {"patch_size": 4, "learn_sigma": False},
            {"in_channels": 3, "mlp_ratio": 2.5},
            {"num_classes": 1, "depth": 12},
        ],
    )
    def test_other_shapes_are_recognised_given_the_heads(self, settings):
        expected = DiTConfig(**{**TINY.model_dump(), **settings})
        assert infer_config(randomised(expected).state_dict(), 2) == expected

    def test_the_head_count_must_be_given_for_other_sizes(self):
        with pytest.raises(BadCheckpoint, match=r"no published DiT has depth 2 and width 16"):
            infer_config(randomised(TINY).state_dict())

    def test_heads_that_do_not_divide_the_width_are_refused(self):
        with pytest.raises(BadCheckpoint, match="num_heads 3 does not divide hidden_size 16"):
            infer_config(randomised(TINY).state_dict(), 3)

    def test_other_networks_are_refused(self):
        with pytest.raises(BadCheckpoint, match=r"not the weights of a DiT: .* pos_embed"):
            infer_config({"conv.weight": torch.ones(3, 3)})

    def test_a_trained_position_table_is_that_of_a_square_or_refused(self):
        state = dict(randomised(TINY).state_dict())
        state["pos_embed"] = torch.randn(1, 4, 16)
        assert infer_config(state, 2) == TINY
        assert "differs from the formula" in table_note(TINY, state)[0]
        state["pos_embed"] = torch.randn(1, 3, 16)
        with pytest.raises(BadCheckpoint, match="pos_embed: is not a table of sines"):
            infer_config(state, 2)

    def test_a_wrong_number_of_outputs_is_refused(self):
        state = dict(randomised(TINY).state_dict())
        state["final_layer.linear.weight"] = torch.ones(12, 16)
        with pytest.raises(BadCheckpoint, match="expected 4 or 8 channels for 4 in"):
            infer_config(state, 2)

    def test_a_position_table_that_drifted_is_kept_and_told_only_when_it_is_far(self):
        state = dict(randomised(TINY).state_dict())
        state["pos_embed"] = state["pos_embed"] + 1.6e-4  # what averaging does in float32
        assert (infer_config(state, 2), table_note(TINY, state)) == (TINY, ())
        state["pos_embed"] = state["pos_embed"] + 2e-3
        (note,) = table_note(infer_config(state, 2), state)
        assert "differs from the formula by up to 0.0022" in note
