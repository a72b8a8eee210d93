"""Objects from attention against true masks, through the command and without it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import ditscope as ds
from ditscope.analysis.parts import parts_of
from ditscope.core.sites import TokenGrid
from ditscope.data.codecs import Latent, LatentCodec
from ditscope.diffusion.ddpm import DDPMProcess
from ditscope.errors import BadRequest
from ditscope.evaluation import segmentation as module
from ditscope.evaluation.segmentation import segmentation


@pytest.fixture(scope="module")
def pipe():
    return ds.load("emoji", dtype="float32")


class Maps(TorchFunctionMode):
    """Float64 softmax of every attention call, beside the model's own."""

    def __init__(self):
        super().__init__()
        self.maps = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            q, k = (each.double() for each in args[:2])
            self.maps.append((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1))
        return function(*args, **(kwargs or {}))


def test_parts_are_those_of_the_mean_map_of_all_layers(pipe):
    state = torch.randn(2, *pipe.latent_shape, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1])
    found = module._parts(pipe, state, 300.0, labels)
    with torch.no_grad(), Maps() as seen:
        pipe.network(state, 300.0, labels)
    mean = torch.stack(seen.maps).mean((0, 2)).numpy()
    grid = pipe.model.config.input_height // pipe.model.config.patch_size
    for each, whole in zip(found, mean, strict=True):
        expected = parts_of((whole + whole.T) / 2, TokenGrid(height=grid, width=grid))
        np.testing.assert_allclose(each["eigenvalue"], expected["eigenvalue"], atol=1e-5)
        np.testing.assert_array_equal(each["object"], expected["object"])


def test_the_bundled_model_tells_objects_better_than_their_usual_place(pipe):
    stages = []
    found = segmentation(pipe, scenes=9, report=lambda *where: stages.append(where))
    assert stages[-1][1:] == (9, 9) and found.sizes["sample"] == 9
    means = found.mean("sample")
    attention, position = (means.sel(finder=name) for name in ("attention", "position"))
    assert float(attention["iou"]) > float(position["iou"])
    assert float(attention["auc"]) > 0.8
    assert (found["iou"] <= found["ceiling"] + 1e-9).all()


def test_the_command_writes_what_it_prints(cli, tmp_path):
    file = tmp_path / "s.json"
    options = ("--segmentation", "--num-samples", "2", "--dtype", "float32", "--out", str(file))
    outcome = cli("eval", "emoji", *options, "--json")
    assert outcome.code == 0, outcome.err
    printed = json.loads(outcome.out)
    assert printed.pop("file") == str(file)
    assert printed == json.loads(file.read_text())
    measures = {(row["measure"], row["finder"]) for row in printed["measures"]}
    assert ("iou", "attention") in measures and ("auc", "position") in measures
    assert printed["scenes"] == 2


def test_options_of_drawing_do_not_belong_to_it(cli, tmp_path):
    outcome = cli("eval", "emoji", "--segmentation", "--steps", "5", "--out", str(tmp_path / "x"))
    assert outcome.code == 2 and "nothing is drawn for it" in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise_level": 0}, "noise-level: found 0; expected above 0 and below 1"),
        ({"noise_level": float("nan")}, "noise-level: found nan"),
        ({"scenes": 1}, "num-samples: found 1; expected 2 scenes or more"),
    ],
)
def test_numbers_out_of_range(pipe, options, words):
    with pytest.raises(BadRequest) as caught:
        segmentation(pipe, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codec": LatentCodec(Latent(), None)}, "does not see pixels by flow matching"),
        ({"process": DDPMProcess()}, "does not see pixels by flow matching"),
        ({"labels": ("tench",)}, "knows none of the classes of emoji scenes"),
    ],
)
def test_models_that_cannot_be_asked(pipe, change, words):
    with pytest.raises(BadRequest, match=words):
        segmentation(replace(pipe, **change), scenes=2)
