"""Plans and runs: what was planned is what happens, and what cannot be served is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from ditscope.diffusion.ddpm import DDPMProcess
from ditscope.diffusion.flow import FlowProcess
from ditscope.diffusion.noise import SampleNoise, sample_seed
from ditscope.diffusion.sampler import SAMPLERS, Evaluation, plan, run
from ditscope.errors import BadRequest, NumericalError

PROCESSES = {
    "learned": DDPMProcess(),
    "fixed": DDPMProcess(learn_sigma=False),
    "short": DDPMProcess(num_timesteps=100),
    "velocity": FlowProcess(),
    "picture": FlowProcess(prediction="x", shift=3.0, time_scale=1.0),
}
CASES = [
    (process, sampler, steps)
    for process, spec in PROCESSES.items()
    for sampler, known in SAMPLERS.items()
    if spec.kind in known.kinds
    for steps in (2, 5, 20)
] + [("velocity", each, 1) for each in ("euler", "heun", "dpm++", "unipc")]


def smooth(process):
    """A network without meaning: bounded, nonlinear, different at every timestep."""
    doubled = process.kind == "ddpm" and process.learn_sigma

    def denoise(x: Tensor, evaluation: Evaluation) -> Tensor:
        out = torch.tanh(x * 1.5 + evaluation.noise_level)
        return torch.cat([out, torch.tanh(x)], dim=1) if doubled else out

    return denoise


def seeds(*samples: int) -> SampleNoise:
    return SampleNoise([sample_seed(0, sample) for sample in samples])


@pytest.mark.parametrize(("process", "sampler", "steps"), CASES)
def test_what_denoise_sees_is_exactly_the_plan(process: str, sampler: str, steps: int) -> None:
    spec = PROCESSES[process]
    planned = plan(spec, sampler, steps)
    seen: list[Evaluation] = []
    inputs: list[Tensor] = []
    network = smooth(spec)

    def denoise(x: Tensor, evaluation: Evaluation) -> Tensor:
        assert x.dtype == torch.float32 and x.shape == (2, 4, 3, 3)
        seen.append(evaluation)
        inputs.append(x)
        return network(x, evaluation)

    noise = seeds(0, 1)
    start = noise((2, 4, 3, 3))
    copy = start.clone()
    x0 = run(planned, denoise, start, noise)
    assert tuple(seen) == planned.evaluations
    assert [each.index for each in seen] == list(range(len(seen)))
    assert torch.equal(inputs[0], start) and torch.equal(start, copy), "changed in place"
    assert x0.dtype == torch.float32 and torch.isfinite(x0).all()
    levels = [each.noise_level for each in seen if each.evaluation == 0]
    assert len(levels) == planned.steps == steps
    assert levels == sorted(levels, reverse=True) and len(set(levels)) == steps
    assert all(0 < level <= 1 for level in levels)
    # A plan is not used up: the same noise gives the same picture again.
    again = seeds(0, 1)
    assert torch.equal(x0, run(planned, network, again((2, 4, 3, 3)), again))


@pytest.mark.parametrize(("process", "sampler", "steps"), [case for case in CASES if case[2] == 5])
def test_a_sample_does_not_depend_on_its_batch(process: str, sampler: str, steps: int) -> None:
    spec = PROCESSES[process]
    planned = plan(spec, sampler, steps)
    among, alone = seeds(2, 7, 9), seeds(7)
    batch = run(planned, smooth(spec), among((3, 4, 5, 5)), among)
    single = run(planned, smooth(spec), alone((1, 4, 5, 5)), alone)
    assert torch.equal(batch[1], single[0])


def test_what_the_network_is_told() -> None:
    ddim = plan(DDPMProcess(), "ddim", 10)
    assert [each.timestep for each in ddim.evaluations] == list(range(900, -1, -100))
    assert ddim.evaluations[-1].noise_level == pytest.approx(math.sqrt(1e-4), rel=1e-9)
    euler = plan(FlowProcess(time_scale=500.0, shift=3.0), "euler", 4)
    levels = [1.0, 0.9, 0.75, 0.5]  # 3 s / (1 + 2 s)
    assert [each.noise_level for each in euler.evaluations] == pytest.approx(levels)
    assert [each.timestep for each in euler.evaluations] == pytest.approx(
        [500 * level for level in levels]
    )
    heun = plan(FlowProcess(), "heun", 4)
    stages = [(each.solver_step, each.evaluation, each.noise_level) for each in heun.evaluations]
    first, second, third, last = (0, 0, 1.0), (1, 0, 0.75), (2, 0, 0.5), (3, 0, 0.25)
    ahead = (0, 1, 0.75), (1, 1, 0.5), (2, 1, 0.25)
    assert stages == [first, ahead[0], second, ahead[1], third, ahead[2], last]


def test_defaults_and_options() -> None:
    assert plan(DDPMProcess(), None, 10).sampler == "ddpm"
    assert plan(FlowProcess(), None, 10).sampler == "euler"
    ddim = plan(DDPMProcess(), "ddim", 50, eta=0.5)
    assert ddim.options == {"clip_denoised": False, "respacing": "ddim50", "eta": 0.5}
    sections = plan(DDPMProcess(), "ddpm", "10,15,20", clip_denoised=True)
    assert sections.steps == 45 and sections.evaluations[0].timestep == 999
    assert sections.options == {"clip_denoised": True, "respacing": "10,15,20"}
    spread = plan(DDPMProcess(), "ddim", "70")
    assert spread.steps == 70 and spread.evaluations[0].timestep == 999
    assert plan(FlowProcess(), "heun", 3).options == {"clip_denoised": False}
    json.dumps([ddim.options, sections.options])


@pytest.mark.parametrize(
    ("process", "sampler", "lists"),
    [
        ("learned", "euler", "'euler' does not fit (ddpm process)"),
        ("velocity", "ddpm", "'ddpm' does not fit (flow process)"),
        ("velocity", "dmp++", "'dmp++' is unknown"),
        ("velocity", "", "'' is unknown"),
    ],
)
def test_a_sampler_that_does_not_fit_lists_those_that_do(process, sampler, lists) -> None:
    with pytest.raises(BadRequest) as caught:
        plan(PROCESSES[process], sampler, 10)
    message = str(caught.value)
    assert lists in message
    fitting = "ddpm, ddim, dpm++, unipc" if process == "learned" else "euler, heun, dpm++, unipc"
    assert f"one of {fitting}" in message


@pytest.mark.parametrize(
    ("process", "sampler", "steps"),
    [
        *(
            (process, None, steps)
            for process in ("learned", "velocity")
            for steps in (0, -1, 10**12)
        ),
        ("learned", "ddpm", 1001),
        ("learned", "ddpm", 1),
        ("learned", "ddim", 70),
        ("learned", "ddpm", "ddim70"),
        ("learned", "ddpm", 10.5),
        ("learned", "dpm++", 1000),
        ("learned", "unipc", "50"),
        ("velocity", "euler", "50"),
        ("velocity", "heun", 2.0),
        ("velocity", "euler", 10_001),
    ],
)
def test_steps_that_cannot_be_taken(process: str, sampler: str | None, steps: object) -> None:
    with pytest.raises(BadRequest) as caught:
        plan(PROCESSES[process], sampler, steps)  # pyright: ignore[reportArgumentType]
    assert caught.value.field == "steps" and caught.value.expected


@pytest.mark.parametrize(
    ("sampler", "eta"), [("ddim", -0.1), ("ddim", 1.1), ("ddim", math.nan), ("ddpm", 0.5)]
)
def test_eta_out_of_range_or_place(sampler: str, eta: float) -> None:
    with pytest.raises(BadRequest) as caught:
        plan(DDPMProcess(), sampler, 10, eta=eta)
    assert caught.value.field == "eta"


def test_the_most_steps_are_different_timesteps() -> None:
    for sampler, steps in (("ddpm", 1000), ("ddim", 1000), ("dpm++", 999), ("unipc", 999)):
        timesteps = [each.timestep for each in plan(DDPMProcess(), sampler, steps).evaluations]
        assert len(set(timesteps)) == steps and timesteps[0] == 999


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("sampler", ["ddpm", "dpm++"])
def test_a_network_that_fails_is_named_by_step(sampler: str, value: float) -> None:
    """Also with clipping on, which would turn infinity into a number."""
    planned = plan(DDPMProcess(learn_sigma=False), sampler, 10, clip_denoised=True)

    def denoise(x: Tensor, evaluation: Evaluation) -> Tensor:
        out = torch.zeros_like(x)
        if evaluation.solver_step == 3:
            out[1, 0, 0, 0] = value
        return out

    noise = seeds(0, 1, 2)
    with pytest.raises(NumericalError) as caught:
        run(planned, denoise, noise((3, 4, 2, 2)), noise)
    message = str(caught.value)
    assert "network's output in step 3 of 10" in message
    assert f"timestep {planned.evaluations[3].timestep:g}" in message
    assert message.split("rows of the batch: ")[1].startswith("1\n")


def test_a_state_that_overflows_is_named_by_step() -> None:
    """Finite outputs can still leave the range of float32."""
    planned = plan(FlowProcess(), "euler", 4)

    def denoise(x: Tensor, evaluation: Evaluation) -> Tensor:
        return torch.full_like(x, -3e38)

    with pytest.raises(NumericalError, match="the picture after step 3 of 4"):
        run(planned, denoise, torch.full((1, 1, 1, 1), 1e38), seeds(0))
    with pytest.raises(NumericalError, match="the state before step 0 of 4"):
        run(planned, denoise, torch.full((1, 1, 1, 1), math.nan), seeds(0))


@pytest.mark.parametrize(
    ("process", "channels"), [("learned", 4), ("fixed", 8), ("velocity", 8), ("velocity", 1)]
)
@pytest.mark.parametrize("sampler", [None, "dpm++"])
def test_a_network_for_another_process_is_refused(process, channels, sampler) -> None:
    """One channel would broadcast in silence."""
    planned = plan(PROCESSES[process], sampler, 3)

    def denoise(x: Tensor, evaluation: Evaluation) -> Tensor:
        return torch.zeros(len(x), channels, *x.shape[2:])

    noise = seeds(0)
    with pytest.raises(BadRequest) as caught:
        run(planned, denoise, noise((1, 4, 2, 2)), noise)
    assert caught.value.field == "learn_sigma" and f"(1, {channels}, 2, 2)" in str(caught.value)


@pytest.mark.parametrize("sampler", [*SAMPLERS])
def test_clip_denoised_bounds_the_picture(sampler: str) -> None:
    spec = DDPMProcess(learn_sigma=False) if "ddpm" in SAMPLERS[sampler].kinds else FlowProcess()

    def denoise(x: Tensor, evaluation: Evaluation) -> Tensor:
        return 3 * torch.sin(5 * x)

    noise = seeds(0)
    start = noise((1, 4, 4, 4))
    free = run(plan(spec, sampler, 5), denoise, start, noise)
    noise = seeds(0)
    start = noise((1, 4, 4, 4))
    clipped = run(plan(spec, sampler, 5, clip_denoised=True), denoise, start, noise)
    assert free.abs().max() > 1.5
    assert clipped.abs().max() <= 1 + 1e-5


def test_planning_and_sampling_do_not_import_diffusers() -> None:
    """It takes seconds; only the multistep samplers need it, and only when they run."""
    code = """
import sys, torch
from ditscope.diffusion import sampler
from ditscope.diffusion.flow import FlowProcess
plan = sampler.plan(FlowProcess(), "unipc", 4)
sampler.run(sampler.plan(FlowProcess(), "heun", 2), lambda x, e: x, torch.ones(1, 1, 1, 1), None)
assert "diffusers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
