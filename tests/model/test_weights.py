"""Our weight files: written whole, read strictly. C12 to C14 of docs/hardening.md."""

import hashlib
import os

import pytest
import safetensors.torch
import torch

from ditscope.errors import BadCheckpoint, ResourceError
from ditscope.model.config import DiTConfig
from ditscope.model.dit import DiT
from ditscope.model.header import read_header
from ditscope.model.weights import (
    ModelWeights,
    load_into,
    load_weights,
    save_weights,
    weights_sha256,
)
from tests.model.golden import MODELS, TINY, config, randomised, relative, tensors, weights

QKV = "blocks.0.attn.qkv.weight"


@pytest.fixture
def state():
    return dict(randomised(TINY).state_dict())


def test_a_round_trip_changes_no_bit(tmp_path, state):
    save_weights(tmp_path / "w", state, metadata={"made": "by us"})
    found = load_weights(tmp_path / "w")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert read_header(tmp_path / "w").metadata == {"format": "pt", "made": "by us"}
    assert os.listdir(tmp_path) == ["w"]


def test_a_file_has_the_rights_that_any_new_file_has(tmp_path, state):
    save_weights(tmp_path / "w", state)
    (tmp_path / "other").touch()
    assert (tmp_path / "w").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_weights_are_written_in_the_type_asked_for(tmp_path, state):
    save_weights(tmp_path / "w", state, dtype=torch.bfloat16)
    found = load_weights(tmp_path / "w")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert torch.equal(found[QKV], state[QKV].bfloat16())


def test_views_and_shared_tensors_are_written_out(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    state = {"a": whole, "b": whole, "row": whole[1], "column": whole[:, 1]}
    save_weights(tmp_path / "w", state)
    found = load_weights(tmp_path / "w")
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_a_place_that_cannot_be_written_is_a_typed_error(tmp_path, state):
    with pytest.raises(ResourceError, match="none"):
        save_weights(tmp_path / "none" / "w", state)


def test_the_old_file_survives_a_failed_write(tmp_path, state, monkeypatch):
    save_weights(tmp_path / "w", state)
    before = (tmp_path / "w").read_bytes()

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(ResourceError, match="No space left"):
        save_weights(tmp_path / "w", {"other": torch.ones(2)})
    assert (tmp_path / "w").read_bytes() == before
    assert os.listdir(tmp_path) == ["w"]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_built_from_weights_is_the_published_one(name):
    network = ModelWeights(config(name), weights(name)).build(file="golden")
    numbers = tensors(name)
    with torch.no_grad():
        found = network(numbers["in.x"], numbers["in.t"], numbers["in.y"])
    assert not network.training
    assert relative(found, numbers["out.forward"]) < 1e-6
    assert [n for n, p in network.named_parameters() if not p.requires_grad] == ["pos_embed"]


def test_a_model_built_from_a_file_does_not_live_in_the_file(tmp_path, state):
    save_weights(tmp_path / "w", state)
    network = ModelWeights(TINY, load_weights(tmp_path / "w")).build(file="w")
    with torch.no_grad():
        network.final_layer.linear.weight.zero_()
    assert torch.equal(
        load_weights(tmp_path / "w")["final_layer.linear.weight"],
        state["final_layer.linear.weight"],
    )


def test_bfloat16_weights_become_the_float32_of_the_model(state):
    halves = {name: tensor.bfloat16() for name, tensor in state.items()}
    network = ModelWeights(TINY, halves).build(file="w")
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert torch.equal(network.state_dict()[QKV], halves[QKV].float())


def changed(state, **edits):
    """The state with tensors replaced (None: removed); `__` stands for a dot in a name."""
    result = dict(state)
    for name, tensor in edits.items():
        result[name.replace("__", ".")] = tensor
    return {name: tensor for name, tensor in result.items() if tensor is not None}


@pytest.mark.parametrize(
    ("edits", "problem"),
    [
        ({"blocks__0__attn__qkv__bias": None}, "1 missing: blocks.0.attn.qkv.bias"),
        ({"head__weight": torch.ones(1)}, "1 unexpected: head.weight"),
        ({"pos_embed": torch.ones(1, 4, 8)}, "1 wrong shape: pos_embed (1, 4, 8) instead of"),
        (
            {"pos_embed": torch.full((1, 4, 16), torch.nan)},
            "does not fit the model: 1 NaN or infinite: pos_embed",
        ),
        ({"pos_embed": torch.full((1, 4, 16), -torch.inf)}, "1 NaN or infinite: pos_embed"),
        ({"pos_embed": torch.ones(1, 4, 16, dtype=torch.int64)}, "wrong type: pos_embed"),
        ({"pos_embed": torch.ones(1, 4, 16).double()}, "wrong type: pos_embed (torch.float64)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_the_model_is_untouched(state, edits, problem):
    network = DiT(TINY)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(BadCheckpoint) as caught:
        load_into(network, changed(state, **edits), "some.safetensors")
    assert problem in str(caught.value)
    assert str(caught.value).startswith("some.safetensors: does not fit the model")
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_one_message_tells_all_kinds_and_ten_names_of_each(state):
    renamed = {f"old.{name}": torch.full((3,), torch.nan) for name in state}
    renamed["pos_embed"] = torch.ones(2)
    with pytest.raises(BadCheckpoint) as caught:
        load_into(DiT(TINY), renamed, "some.safetensors")
    text = str(caught.value)
    for kind in ("31 missing", "32 unexpected", "1 wrong shape", "and 21 more", "and 22 more"):
        assert kind in text
    assert text.count("old.") == 10
    assert len(text) < 1500


def test_numbers_that_are_not_finite_may_be_loaded_on_request(state):
    broken = changed(state, pos_embed=torch.full((1, 4, 16), torch.nan))
    network = ModelWeights(TINY, broken).build(file="w", allow_nonfinite=True)
    assert network.pos_embed.isnan().all()


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.float8_e4m3fn, torch.float64])
def test_types_that_are_no_weights_are_refused_by_name(tmp_path, kind):
    safetensors.torch.save_file({"counter": torch.ones(3).to(kind)}, tmp_path / "w")
    with pytest.raises(BadCheckpoint, match=r"counter .*; expected F32, BF16, F16"):
        load_weights(tmp_path / "w")


@pytest.mark.parametrize(
    "sizes",
    [
        {"depth": 10**9},
        {"input_size": 2**40, "patch_size": 2},
        {"hidden_size": 2**40},
        {"num_classes": 10**15},
    ],
)
def test_a_configuration_of_another_size_is_refused_before_memory_is_asked_for(state, sizes):
    huge = DiTConfig(**{**TINY.model_dump(), **sizes})
    with pytest.raises(BadCheckpoint, match=r"some: holds .* parameters; expected .* by its"):
        ModelWeights(huge, state).build(file="some")


@pytest.mark.parametrize("sizes", [{"depth": 3}, {"depth": 1}, {"num_classes": 4}])
def test_a_configuration_of_almost_the_size_is_told_in_names(state, sizes):
    other = DiTConfig(**{**TINY.model_dump(), **sizes})
    with pytest.raises(
        BadCheckpoint, match=r"10 missing: blocks\.2|10 unexpected|1 wrong shape: y_e"
    ):
        ModelWeights(other, state).check(file="some")


@pytest.mark.parametrize(
    "settings",
    [
        TINY,
        DiTConfig(input_size=(4, 8), hidden_size=24, depth=1, num_heads=3, mlp_ratio=2.5),
        TINY.model_copy(update={"learn_sigma": False, "class_dropout_prob": 0.0, "in_channels": 3}),
    ],
)
def test_the_parameter_formula_counts_any_model(settings):
    count = sum(parameter.numel() for parameter in DiT(settings).parameters())
    assert settings.architecture.parameters == count


class TestIdentity:
    def test_of_a_file_is_its_digest(self, tmp_path, state):
        save_weights(tmp_path / "w", state)
        digest = hashlib.sha256((tmp_path / "w").read_bytes()).hexdigest()
        assert weights_sha256(tmp_path / "w") == digest

    def test_of_tensors_depends_on_content_and_not_on_order_or_layout(self, state):
        backwards = dict(reversed(state.items()))
        backwards[QKV] = backwards[QKV].T.contiguous().T
        assert weights_sha256(backwards) == weights_sha256(state)

    @pytest.mark.parametrize(
        "change",
        [
            lambda tensor: tensor + 1e-3,
            lambda tensor: tensor.bfloat16(),
            lambda tensor: tensor.T,
        ],
    )
    def test_of_tensors_changes_with_value_type_and_shape(self, state, change):
        assert weights_sha256({**state, QKV: change(state[QKV])}) != weights_sha256(state)

    def test_of_tensors_changes_with_a_name(self, state):
        renamed = {name.replace("fc1", "fc3"): tensor for name, tensor in state.items()}
        assert weights_sha256(renamed) != weights_sha256(state)
