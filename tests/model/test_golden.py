"""The model against the published one: numbers that its code produced, not ours."""

import pytest
import torch
from torch import nn

from ditscope.core.variants import VARIANTS
from ditscope.diffusion.guidance import guide
from ditscope.diffusion.schedule import Evaluation
from ditscope.errors import BadConfig, BadRequest
from ditscope.model.config import DiTConfig
from ditscope.model.dit import DiT, build
from ditscope.model.layers import LabelEmbedder, position_table, timestep_sinusoid
from tests.model.golden import MODELS, TABLES, TINY, model, randomised, relative, tensors


@pytest.mark.parametrize("name", MODELS)
def test_forward_is_the_published_one(name):
    numbers = tensors(name)
    with torch.no_grad():
        found = model(name)(numbers["in.x"], numbers["in.t"], numbers["in.y"])
    assert relative(found, numbers["out.forward"]) < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_guidance_on_three_channels_is_the_published_one(name):
    numbers, network = tensors(name), model(name)
    channels, expected = network.config.in_channels, numbers["out.forward_with_cfg_scale4"]
    for row, (timestep, label) in enumerate(
        zip(numbers["in.cfg_t"], numbers["in.cfg_y"], strict=True)
    ):
        if label == network.config.null_label:
            continue  # the second half of the batch repeats the first

        def two_branches(x, timestep, labels, evaluation, branches):
            assert branches == ("cond", "uncond")
            return network(x, torch.full((len(x),), timestep), labels)

        denoise = guide(two_branches, label[None], network.config.null_label, 4.0, channels=3)
        evaluation = Evaluation(0, 0, 0, float(timestep), 0.5)
        with torch.no_grad():
            found = denoise(numbers["in.cfg_x"][row, None], evaluation)[0]
        assert relative(found[:channels], expected[row, :channels]) < 3e-6
        assert relative(found, expected[row]) < 3e-6


def test_timestep_sinusoid_is_the_published_one_bit_for_bit():
    """Where exp and cos are those that the numbers came from; elsewhere within their last bits."""
    expected = tensors("embeddings")["timestep_embedding_t0_1_10_500_999_dim256"]
    t = torch.tensor([0, 1, 10, 500, 999])
    found = timestep_sinusoid(t)
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert torch.equal(found, expected)
    angles = t.double()[:, None] * 10000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    last_bits = 2.0**-23 * (1 + angles.repeat(1, 2))  # of the result, and of the frequency
    assert ((found - expected).abs() <= last_bits).all()


def test_position_table_is_the_published_one():
    expected = tensors("embeddings")["pos_embed_dim48_grid4"]
    assert (position_table(4, 4, 48) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("name", VARIANTS)
def test_parameter_counts_are_the_published_ones(name):
    with torch.device("meta"):
        network = build(name)
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    total = sum(p.numel() for p in network.parameters())
    assert TABLES["params"][name] == {"total": total, "trainable": total - frozen}


def test_names_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        state = build("DiT-XL/2").state_dict()
    found = {name: list(tensor.shape) for name, tensor in state.items()}
    assert list(found) == list(TABLES["state_dict_XL2"])
    assert found == TABLES["state_dict_XL2"]
    assert len(found) == 292


def test_widths_and_conventions_of_the_module_tree():
    with torch.device("meta"):
        network = build("DiT-XL/2")
    assert network.config.head_width == 72
    norms = [module for module in network.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * 28 + 1
    assert {(norm.eps, norm.elementwise_affine) for norm in norms} == {(1e-6, False)}
    activations = [module for module in network.modules() if isinstance(module, nn.GELU)]
    assert {activation.approximate for activation in activations} == {"tanh"}


def test_an_untrained_model_returns_exactly_zero():
    network, x = DiT(TINY).eval(), torch.randn(2, 4, 4, 4)
    assert torch.count_nonzero(network(x, torch.tensor([0, 999]), torch.tensor([0, 3]))) == 0


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    state = DiT(DiTConfig(input_size=4, hidden_size=64, depth=1, num_heads=2)).state_dict()
    zero = {name for name, tensor in state.items() if not tensor.any()}
    biases = {name for name in state if name.endswith(".bias")}
    gates = {"blocks.0.adaLN_modulation.1", "final_layer.adaLN_modulation.1", "final_layer.linear"}
    assert zero == biases | {f"{layer}.weight" for layer in gates}
    for name in ("t_embedder.mlp.0", "t_embedder.mlp.2", "y_embedder.embedding_table"):
        assert state[f"{name}.weight"].std() == pytest.approx(0.02, rel=0.05)
    for name in ("blocks.0.attn.qkv", "blocks.0.mlp.fc1", "x_embedder.proj"):
        flat = state[f"{name}.weight"].flatten(1)
        bound = (6 / sum(flat.shape)) ** 0.5  # Glorot and Bengio: uniform on [-bound, bound]
        assert 0.95 * bound < flat.abs().max() <= bound


def test_only_the_position_table_is_frozen():
    frozen = {name for name, p in DiT(TINY).named_parameters() if not p.requires_grad}
    assert frozen == {"pos_embed"}


class TestLabelDropout:
    labels = torch.arange(3).repeat(400)

    def test_it_happens_in_training_at_the_given_rate(self):
        torch.manual_seed(0)
        embedder = LabelEmbedder(3, 4, 0.25).train()
        null = embedder.embedding_table.weight[3]
        dropped = (embedder(self.labels) == null).all(dim=1)
        assert 0.2 < dropped.float().mean() < 0.3
        kept = embedder.embedding_table(self.labels)[~dropped]
        assert torch.equal(embedder.eval()(self.labels)[~dropped], kept)

    def test_it_does_not_happen_in_evaluation(self):
        embedder = LabelEmbedder(3, 4, 1.0).eval()
        assert torch.equal(embedder(self.labels), embedder.embedding_table(self.labels))

    @pytest.mark.parametrize("training", [True, False])
    def test_it_can_be_forced(self, training):
        embedder = LabelEmbedder(3, 4, 0.5).train(training)
        found = embedder(torch.tensor([0, 1, 2]), torch.tensor([1, 0, 1]))
        assert torch.equal(found, embedder.embedding_table(torch.tensor([3, 1, 3])))

    def test_without_it_there_is_no_null_row(self):
        settings = TINY.model_copy(update={"class_dropout_prob": 0.0})
        network = DiT(settings).train()
        assert network.y_embedder.embedding_table.weight.shape == (3, 16)
        x, t, y = torch.randn(1, 4, 4, 4), torch.tensor([5]), torch.tensor([2])
        assert torch.equal(network(x, t, y), network.eval()(x, t, y))


def reference_patches(x, patch):
    """Tokens of a picture by plain loops: row-major, each (channel, row, column) within a patch."""
    _, channels, height, width = x.shape
    return torch.stack(
        [
            torch.stack(
                [
                    x[:, c, top + i, left + j]
                    for c in range(channels)
                    for i in range(patch)
                    for j in range(patch)
                ],
                dim=1,
            )
            for top in range(0, height, patch)
            for left in range(0, width, patch)
        ],
        dim=1,
    )


def test_tokens_of_a_wide_picture_are_in_row_major_order():
    settings = DiTConfig(input_size=(4, 6), hidden_size=16, depth=1, num_heads=2, num_classes=3)
    network, x = randomised(settings), torch.randn(2, 4, 4, 6)
    layer = network.x_embedder.proj
    patches = reference_patches(x, 2)
    expected = patches @ layer.weight.flatten(1).T + layer.bias
    assert network.config.grid == (2, 3)
    assert torch.allclose(network.x_embedder(x), expected, atol=1e-6)


def test_patches_return_to_their_place():
    settings = DiTConfig(input_size=(4, 6), hidden_size=16, depth=1, num_heads=2, num_classes=3)
    network, picture = DiT(settings), torch.randn(2, 8, 4, 6)
    channel_first = reference_patches(picture, 2).unflatten(2, (8, 4))  # (B, N, C, p * p)
    found = network.unpatchify(channel_first.transpose(2, 3).flatten(2))  # published: channel last
    assert torch.equal(found, picture)


def test_wide_and_tall_pictures_have_their_own_positions():
    assert torch.equal(position_table(2, 3, 8)[4], position_table(4, 5, 8)[6])  # row 1, column 1
    wide = randomised(DiTConfig(input_size=(4, 8), hidden_size=16, depth=1, num_heads=2))
    out = wide(torch.randn(1, 4, 4, 8), torch.tensor([3]), torch.tensor([0]))
    assert out.shape == (1, 8, 4, 8)


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(BadRequest, match=r"\(1, 4, 4, 6\)"):
        DiT(TINY)(torch.zeros(1, 4, 4, 6), torch.tensor([0]), torch.tensor([0]))


def test_bfloat16_is_close_to_float32():
    numbers, network = tensors(MODELS[0]), model(MODELS[0])
    with torch.no_grad():
        found = network.bfloat16()(numbers["in.x"].bfloat16(), numbers["in.t"], numbers["in.y"])
    assert found.dtype == torch.bfloat16
    assert relative(found.float(), numbers["out.forward"]) < 2e-2


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"hidden_size": 100, "num_heads": 3}, ("num_heads 3", "hidden_size 100")),
        ({"input_size": 9}, ("patch_size 2", "9 x 9")),
        ({"input_size": (8, 9)}, ("patch_size 2", "8 x 9")),
        ({"hidden_size": 6, "num_heads": 3}, ("hidden_size 6", "multiple of 4")),
        ({"depth": 0}, ("depth", "greater than 0")),
        ({"mlp_ratio": float("nan")}, ("mlp_ratio",)),
        ({"class_dropout_prob": 1.5}, ("class_dropout_prob",)),
        ({"frequency_shift": 2}, ("frequency_shift", "0 or 1")),
        ({"hiden_size": 64}, ("hiden_size",)),
    ],
)
def test_impossible_configurations_are_refused(settings, names):
    with pytest.raises(BadConfig) as caught:
        DiTConfig(**settings)
    for name in names:
        assert name in str(caught.value)


def test_an_unknown_variant_is_refused_by_name():
    with pytest.raises(BadRequest, match="did you mean DiT-XL/2"):
        build("DiT-XXL/2")
