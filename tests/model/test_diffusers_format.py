"""To diffusers and back: the same tensors, and the same numbers as diffusers' own model.

C17 and C18 of docs/hardening.md.
"""

import json
import subprocess

import pytest
import safetensors.torch
import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

from ditscope.errors import BadCheckpoint, BadConfig
from ditscope.model import published
from ditscope.model.config import DiTConfig
from ditscope.model.diffusers_format import (
    CONFIG_FILE,
    PICKLED_FILE,
    SHARDS_FILE,
    WEIGHTS_FILE,
    export_diffusers,
    load_diffusers,
    load_in_diffusers,
)
from ditscope.model.dit import DiT
from ditscope.model.layers import timestep_sinusoid
from ditscope.model.weights import ModelWeights
from tests.model.golden import MODELS, TINY, config, randomised, relative, tensors, weights

OTHER_SIZES = {
    "one block of one head": {"depth": 1, "num_heads": 1, "num_classes": 1},
    "patch 4 without variance": {"input_size": 8, "patch_size": 4, "learn_sigma": False},
    "three channels": {"in_channels": 3, "hidden_size": 24, "num_heads": 3},
}


def theirs(**settings):
    """A diffusers model with random weights and, as in every DiT, one embedder for all blocks."""
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 4}
    network = DiTTransformer2DModel(
        **{**sizes, "out_channels": 8, "num_embeds_ada_norm": 3, **settings}
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.08, generator=generator)
        for block in network.transformer_blocks[1:]:
            block.norm1.emb.load_state_dict(network.transformer_blocks[0].norm1.emb.state_dict())
    return network.eval()


@pytest.fixture
def folder(tmp_path):
    theirs().save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def edit_json(file, **fields):
    tree = json.loads(file.read_text())
    tree.update(fields)
    file.write_text(json.dumps({key: value for key, value in tree.items() if value is not ...}))


def edit_tensors(folder, edit):
    state = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    edit(state)
    safetensors.torch.save_file(state, folder / WEIGHTS_FILE, {"format": "pt"})


def inputs(settings):
    generator = torch.Generator().manual_seed(1)
    size = settings.in_channels, settings.input_height, settings.input_width
    x = torch.randn(4, *size, generator=generator)
    return x, torch.tensor([999, 500, 1, 0]), torch.arange(4) % (settings.num_classes + 1)


class TestNumbers:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"norm_eps": 1e-6, "out_channels": 4},
            {"out_channels": None, "in_channels": 3},
            {"patch_size": 1, "num_layers": 1, "attention_head_dim": 72, "num_embeds_ada_norm": 9},
        ],
    )
    def test_an_imported_model_computes_what_diffusers_does(self, tmp_path, settings):
        network = theirs(**settings)
        network.save_pretrained(tmp_path)
        found = load_diffusers(tmp_path)
        ours = found.build(file=tmp_path)
        assert found.config.frequency_shift == 1
        assert found.config.mlp_norm_eps == settings.get("norm_eps", 1e-5)
        x, t, y = inputs(found.config)
        with torch.no_grad():
            expected = network(x, timestep=t, class_labels=y).sample
            assert relative(ours(x, t, y), expected) < 1e-6

    def test_the_sinusoid_is_theirs_bit_for_bit(self):
        t = torch.arange(0, 1000, 37)
        expected = theirs(num_layers=1).transformer_blocks[0].norm1.emb.time_proj(t)
        assert torch.equal(timestep_sinusoid(t, frequency_shift=1), expected)

    @pytest.mark.parametrize("name", MODELS)
    def test_an_exported_model_computes_the_published_numbers_in_diffusers(self, tmp_path, name):
        notes = export_diffusers(ModelWeights(config(name), weights(name)), tmp_path)
        assert "another divisor (127)" in notes[0]
        assert "load_in_diffusers" in notes[0]
        numbers = tensors(name)
        given = {"timestep": numbers["in.t"], "class_labels": numbers["in.y"]}
        with torch.no_grad():
            found = load_in_diffusers(tmp_path)(numbers["in.x"], **given).sample
            without = DiTTransformer2DModel.from_pretrained(tmp_path)(
                numbers["in.x"], **given
            ).sample
        assert relative(found, numbers["out.forward"]) < 1e-6
        assert relative(without, numbers["out.forward"]) > 0.01  # what the note warns of

    def test_a_model_of_diffusers_needs_no_warning_and_stays_as_it_is(self, tmp_path, folder):
        assert export_diffusers(load_diffusers(folder), tmp_path) == ()
        back = load_in_diffusers(tmp_path)
        assert back.transformer_blocks[0].norm1.emb.time_proj.downscale_freq_shift == 1


class TestRoundTrip:
    @pytest.mark.parametrize("sizes", OTHER_SIZES.values(), ids=OTHER_SIZES)
    @pytest.mark.parametrize("shift", [0, 1])
    def test_ours_comes_back_the_same(self, tmp_path, sizes, shift):
        settings = DiTConfig(**{**TINY.model_dump(), **sizes, "frequency_shift": shift})
        state = dict(randomised(settings).state_dict())
        export_diffusers(ModelWeights(settings, state), tmp_path)
        found = load_diffusers(tmp_path)
        assert (found.config, found.notes) == (settings, ())
        assert found.state.keys() == state.keys()
        assert all(torch.equal(found.state[name], tensor) for name, tensor in state.items())
        assert load_in_diffusers(tmp_path).config.out_channels == settings.out_channels

    def test_theirs_comes_back_the_same(self, tmp_path, folder):
        export_diffusers(load_diffusers(folder), tmp_path)
        before = safetensors.torch.load_file(folder / WEIGHTS_FILE)
        after = safetensors.torch.load_file(tmp_path / WEIGHTS_FILE)
        assert before.keys() == after.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        settings = [json.loads((place / CONFIG_FILE).read_text()) for place in (folder, tmp_path)]
        del settings[0]["_diffusers_version"]
        assert settings[0] == settings[1]

    def test_bfloat16_is_kept(self, tmp_path):
        state = {name: tensor.bfloat16() for name, tensor in randomised(TINY).state_dict().items()}
        export_diffusers(ModelWeights(TINY, state), tmp_path)
        found = load_diffusers(tmp_path).state
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_the_original_sinusoid_can_be_asked_for(folder):
    assert "facebook/DiT-XL-2-256" in load_diffusers(folder).notes[0]
    asked = load_diffusers(folder, frequency_shift=0)
    assert (asked.config.frequency_shift, asked.notes) == (0, ())


def test_the_configuration_of_the_published_hub_copy_is_understood(folder):
    """Its fields are from the time when the network was a mode of `Transformer2DModel`."""
    edit_json(
        folder / CONFIG_FILE,
        _class_name="Transformer2DModel",
        _diffusers_version="0.12.0.dev0",
        cross_attention_dim=None,
        num_vector_embeds=None,
        only_cross_attention=False,
        use_linear_projection=False,
        norm_eps=...,
    )
    assert load_diffusers(folder).config.mlp_norm_eps == 1e-5


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map: this field makes other programs run code"),
        ({"extra": [{"custom_pipeline": "./x.py"}]}, "custom_pipeline: this field makes"),
        ({"_attn_implementation_internal": "user/repo"}, "_attn_implementation_internal: this"),
        ({"quantization_config": {}}, "quantization_config: unknown field"),
        ({"norm_epsilon": 1e-6}, "norm_epsilon: unknown field\n  did you mean norm_eps?"),
        ({"_class_name": "PixArtTransformer2DModel"}, "_class_name: Input should be"),
        ({"activation_fn": "geglu"}, "activation_fn"),
        ({"attention_bias": False}, "attention_bias"),
        ({"norm_type": "layer_norm"}, "norm_type"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine"),
        ({"dropout": 0.1}, "dropout"),
        ({"num_embeds_ada_norm": None}, "num_embeds_ada_norm"),
        ({"num_layers": "2"}, "num_layers"),
        ({"num_layers": 3}, "holds 2 blocks; expected 3 (num_layers)"),
        ({"num_layers": 10**9}, "holds 2 blocks; expected 1000000000 (num_layers)"),
        ({"sample_size": 10**9}, "sample_size: Input should be less than or equal to 1024"),
        ({"attention_head_dim": 10**9}, "tensors of width 16; expected 2000000000"),
        ({"sample_size": 5}, "patch_size 2 does not divide input_size 5 x 5"),
        ({"out_channels": 12}, "out_channels: is 12; expected 4 or 8"),
    ],
)
def test_configurations_of_another_network_are_refused(folder, fields, problem):
    edit_json(folder / CONFIG_FILE, **fields)
    with pytest.raises(BadCheckpoint) as caught:
        load_diffusers(folder)
    assert problem in str(caught.value)
    assert str(caught.value).startswith(str(folder))


EMBEDDER = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda s: s.update(extra=torch.ones(1)), "1 unexpected: extra"),
        (lambda s: s.pop("proj_out_1.bias"), "1 missing: proj_out_1.bias"),
        (
            lambda s: s.pop("transformer_blocks.0.attn1.to_k.bias"),
            "1 missing: transformer_blocks.0",
        ),
        (
            lambda s: s.update(pos_embed=s.pop("pos_embed.proj.bias")),
            "1 missing: pos_embed.proj.bi",
        ),
        (lambda s: s.update({EMBEDDER: s[EMBEDDER] + 1}), f"where a DiT has one: {EMBEDDER}"),
        (lambda s: s.update({EMBEDDER: torch.ones(3)}), f"where a DiT has one: {EMBEDDER}"),
    ],
)
def test_other_tensors_are_refused_and_none_is_dropped(folder, edit, problem):
    edit_tensors(folder, edit)
    with pytest.raises(BadCheckpoint) as caught:
        load_diffusers(folder)
    assert problem in str(caught.value)


def test_tensors_of_another_shape_are_refused_when_the_model_is_built(folder):
    edit_tensors(folder, lambda state: state.update({"proj_out_2.bias": torch.ones(16)}))
    with pytest.raises(BadCheckpoint, match="1 wrong shape: final_layer"):
        load_diffusers(folder).build(file=folder)


class TestShards:
    @pytest.fixture
    def sharded(self, tmp_path):
        theirs().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
        assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
        return tmp_path / "shards"

    def test_they_are_read_as_one(self, sharded, folder):
        found, expected = load_diffusers(sharded).state, load_diffusers(folder).state
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    @pytest.mark.parametrize(
        ("place", "problem"),
        [
            (
                "missing.safetensors",
                "names missing.safetensors; expected safetensors files that are",
            ),
            ("../theirs/diffusion_pytorch_model.safetensors", "names ../theirs/diffusion"),
            ("/etc/passwd", "names /etc/passwd"),
            ("..", "names .."),
            ("weights.bin", "names weights.bin; expected safetensors files that are"),
            (7, "weight_map: is not names to files"),
        ],
    )
    def test_an_index_that_leads_elsewhere_is_refused(self, sharded, place, problem):
        index = json.loads((sharded / SHARDS_FILE).read_text())
        index["weight_map"]["proj_out_1.bias"] = place
        (sharded / SHARDS_FILE).write_text(json.dumps(index))
        with pytest.raises(BadCheckpoint) as caught:
            load_diffusers(sharded)
        assert problem in str(caught.value)

    def test_a_tensor_in_another_shard_than_the_index_says_is_refused(self, sharded):
        index = json.loads((sharded / SHARDS_FILE).read_text())
        del index["weight_map"]["proj_out_1.bias"]
        (sharded / SHARDS_FILE).write_text(json.dumps(index))
        with pytest.raises(BadCheckpoint, match=r"other tensors than .* says: proj_out_1.bias"):
            load_diffusers(sharded)


class TestPickled:
    @pytest.fixture
    def pickled(self, folder):
        torch.save(safetensors.torch.load_file(folder / WEIGHTS_FILE), folder / PICKLED_FILE)
        (folder / WEIGHTS_FILE).rename(folder.parent / "kept.safetensors")
        return folder

    def test_it_is_refused_with_the_way_out(self, pickled, monkeypatch):
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("child started"))
        with pytest.raises(BadCheckpoint) as caught:
            load_diffusers(pickled)
        assert "holds only pickled weights (diffusion_pytorch_model.bin)" in str(caught.value)
        assert "ditscope convert" in str(caught.value.fix)

    def test_it_is_read_as_published_files_are_on_request(self, pickled, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(
            published, "_convert_in_child", lambda a, b, part, _: published.convert(a, b, part)
        )
        found = load_diffusers(pickled, unpickle=True).state
        (pickled.parent / "kept.safetensors").rename(pickled / WEIGHTS_FILE)
        expected = load_diffusers(pickled).state
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    def test_no_weights_at_all(self, folder):
        (folder / WEIGHTS_FILE).unlink()
        with pytest.raises(BadCheckpoint, match="no weights here; expected diffusion_pytorch"):
            load_diffusers(folder)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"input_size": (4, 8)}, "input_size: 4 x 8 is not square"),
        ({"mlp_ratio": 2.0}, "mlp_ratio: 2.0 is not 4"),
        ({"class_dropout_prob": 0.0}, "class_dropout_prob: 0 leaves no null class"),
    ],
)
def test_what_diffusers_cannot_express_is_not_exported(tmp_path, settings, problem):
    odd = DiTConfig(**{**TINY.model_dump(), **settings})
    with pytest.raises(BadConfig) as caught:
        export_diffusers(ModelWeights(odd, dict(DiT(odd).state_dict())), tmp_path)
    assert problem in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_position_table_that_is_not_the_formula_is_told_when_it_is_dropped(tmp_path):
    state = dict(randomised(TINY).state_dict())
    state["pos_embed"] = state["pos_embed"] + 0.01
    notes = export_diffusers(ModelWeights(TINY, state), tmp_path)
    assert "differs from the formula by up to 0.01, and diffusers will use the formula" in notes[0]
