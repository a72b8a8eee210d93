"""Writes docs/findings.md: what the heads of the bundled model do, and which usual claims hold.

Draws, analyses, tests and draws the figures; every number of the page is computed here, so the page
is that of the weights that are bundled when this runs. usage: scripts/findings [--run RUN]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy
import xarray

import ditscope as ds
from ditscope import plot
from ditscope.analysis.claims import usual_claims
from ditscope.analysis.confidence import interval
from ditscope.analysis.head_kinds import head_kinds
from ditscope.analysis.layers import layer_profile
from ditscope.analysis.map_measures import map_measures
from ditscope.analysis.mass_flow import mass_flow
from ditscope.analysis.parts import find_parts
from ditscope.analysis.phases import phases
from ditscope.analysis.testing import paired_g, sign_flip_p
from ditscope.cli.segmentation import measured, rows
from ditscope.runs.reader import Run

PAGE = Path("docs/findings.md")
IMAGES = Path("docs/images")
CLASSES = ("dog face", "cat face", "owl", "pizza", "fox", "lion", "tiger face", "panda")
SAMPLES, STEPS, QK_STEPS, SEED = 8, 50, 6, 0
SCENES = 32
DPI = 80


def main() -> None:
    """Draw if no run is given, measure, write the page and its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a recorded run in place of a new one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = ds.open_run(arguments.run) if arguments.run else draw(Path(folder) / "run")
        PAGE.write_text(page(run), encoding="utf-8")
    print(PAGE)


def draw(path: Path, steps: int = STEPS) -> Run:
    """Eight pictures of eight classes with guidance, Q and K of six steps kept."""
    pipe = ds.load("emoji")
    known = [name for name in CLASSES if name in pipe.labels]
    labels = [*known, *(name for name in pipe.labels if name not in known)][:SAMPLES]
    kept = {round(i * (steps - 1) / (QK_STEPS - 1)) for i in range(QK_STEPS)}
    return ds.sample(
        pipe,
        labels,
        steps=steps,
        cfg_scale=4.0,
        seed=SEED,
        record=path,
        qk_steps=tuple(sorted(kept)),
    )


def page(run: Run) -> str:
    """The whole page; figures are saved on the way."""
    for name, figure in (
        ("kinds", plot.kinds(run)),
        ("steps", plot.steps(run)),
        ("depth", plot.depth(run)),
        ("parts", plot.parts(run)),
    ):
        plot.save_figure(figure, IMAGES / f"findings-{name}.png", DPI)
    model, count = run.manifest.model, len(run.manifest.labels)
    branches = "with and without guidance" if len(run.stats["branch"]) == 2 else "without guidance"
    return "\n".join(
        [
            "# What the heads of the bundled model do",
            "",
            "A small study with ditscope itself. `scripts/findings` draws the pictures, measures, "
            "tests and writes this page and its figures;",
            "no number here is typed by hand.",
            "",
            f"* Model `{model.name}`, weights `{model.weights_sha256[:12]}`, "
            f"{len(run.manifest.sites)} layers of {run.manifest.sites[0].heads} heads, "
            f"{run.manifest.sites[0].keys} patches.",
            f"* {count} pictures ({', '.join(label.name for label in run.manifest.labels)}), "
            f"{len(run.steps)} steps, recorded {branches}, seed {run.manifest.seed}; maps at steps "
            f"{', '.join(map(str, run.manifest.qk_steps))}.",
            "* Intervals are 95 % bootstraps over pictures; p is of an exact test, by exchange "
            f"within pictures, not adjusted. {count} pictures show large effects only.",
            "",
            *heads_section(run),
            *claims_section(run),
            *steps_section(run),
            *objects_section(run),
            "",
        ]
    )


def heads_section(run: Run) -> list[str]:
    """Kinds of heads: how many of each, and where."""
    found = head_kinds(run)
    called = found["called"].values
    table = []
    for name in sorted(set(called.ravel().tolist()) - {""}, key=lambda n: -(called == n).sum()):
        layers = sorted({int(layer) for layer in numpy.argwhere(called == name)[:, 0]})
        table.append(f"| {name} | {(called == name).sum()} | {', '.join(map(str, layers))} |")
    missing = {
        text: kind
        for kind, text in zip(found["kind"].values, found["missing"].values, strict=True)
        if text
    }
    return [
        "## Kinds of heads",
        "",
        "Each head is called by the most specific rule that holds (`ditscope plot kinds RUN`).",
        "",
        "| kind | heads | in layers |",
        "|---|---|---|",
        *table,
        *[f"\nNot told: {kind}. {text}" for text, kind in missing.items()],
        "",
        "![Kinds of heads](images/findings-kinds.png)",
        "",
    ]


def claims_section(run: Run) -> list[str]:
    """The usual claims, each with its number, interval and verdict; and the trend with depth."""
    found = usual_claims(run)
    table = []
    for claim in found["claim"].values.tolist():
        here = found.sel(claim=claim)
        verdict = str(here["verdict"].item())
        words = layers_words(here["layer_verdict"].values.tolist())
        missing = str(here["missing"].item())
        table.append(
            f"| {here['statement'].item()} | {numbers(here)} | **{verdict}** | {missing or words} |"
        )
    trend = layer_profile(run)
    lines = [
        f"* {metric}: rank correlation with depth {float(here['trend']):+.2f} "
        f"({float(here['trend_low']):+.2f} to {float(here['trend_high']):+.2f})"
        for metric in trend["metric"].values.tolist()
        for here in [trend.sel(metric=metric)]
    ]
    return [
        "## Where the usual claims hold",
        "",
        "A number above zero is in favour of the claim: patches, a share of spectral power, or "
        "for depth a rank correlation.",
        "",
        "| claim | mean and interval | verdict | layer by layer |",
        "|---|---|---|---|",
        *table,
        "",
        "With depth:",
        "",
        *lines,
        "",
        "![Statistics over the layers](images/findings-depth.png)",
        "",
    ]


def steps_section(run: Run) -> list[str]:
    """Phases, and whether attention becomes steadier towards the end."""
    found = phases(run)
    spans = [
        f"steps {int(found['first_step'][i])} to {int(found['last_step'][i])} "
        f"(noise {float(found['first_noise'][i]):.2f} to {float(found['last_noise'][i]):.2f})"
        for i in range(found.sizes["phase"])
    ]
    kept = map_measures(run)["kept"].sel(branch="cond").mean(["layer", "head"], skipna=True)
    first, last = kept.isel(step=1), kept.isel(step=-1)
    return [
        "## Phases of a run",
        "",
        f"{len(spans)} phases, between which the statistics change at a steady rate "
        f"({100 * found.attrs['explained']:.0f} % of their variance over steps): "
        f"{'; '.join(spans)}.",
        "",
        "Of its attention a head keeps from one stored step to the next "
        f"{test_words(first, last, 'at first', 'at last')}",
        "",
        "![Statistics over the steps](images/findings-steps.png)",
        "",
    ]


def objects_section(run: Run) -> list[str]:
    """Whether the object looks at itself more than at the rest, with an effect size and a test."""
    inside, outside, sizes = [], [], []
    for sample in range(len(run.manifest.labels)):
        found = find_parts(run, sample)
        mask = found["object"].values
        if not mask.any() or mask.all():
            continue
        flow = mass_flow(run, {"object": mask}, steps=found.attrs["steps"], samples=[sample])[
            "lift"
        ]
        here = flow.sel(sample=sample, source="object").mean(["step", "layer", "head"])
        inside.append(float(here.sel(target="object")))
        outside.append(float(here.sel(target="rest")))
        sizes.append(float(mask.mean()))
    pairs = [xarray.DataArray(values, dims="sample") for values in (outside, inside)]
    words = (
        "In even shares a patch of the object gives "
        f"{test_words(*pairs, 'to the rest', 'to the object')} The object was found in the same "
        "maps, so this says how clear-cut it is, not that it is right."
        if len(inside) > 1
        else "Too few pictures show an object to test anything."
    )
    return [
        "## Objects",
        "",
        f"Attention alone tells an object in {len(inside)} of {len(run.manifest.labels)} pictures, "
        f"{100 * min(sizes, default=0):.0f} to {100 * max(sizes, default=0):.0f} % of the picture. "
        f"{words}",
        "",
        "![Parts of each picture](images/findings-parts.png)",
        "",
        *masks_section(),
    ]


def masks_section() -> list[str]:
    """Objects from attention against the true masks of scenes, beside rivals that see none."""
    tree = measured(ds.load("emoji"), SCENES, lambda *where: None)
    return [
        f"Whether it is right, {tree['scenes']} scenes with true masks tell "
        f"(`ditscope eval emoji --segmentation --num-samples {tree['scenes']}`); p is of the "
        "difference to attention.",
        "",
        "| measure | by | mean | interval | p |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(cells)} |" for cells in rows(tree["measures"])),
        "",
        "colour: what stands out from the colours at the picture's edge; position: where objects "
        "usually are.",
    ]


def test_words(one: xarray.DataArray, other: xarray.DataArray, *names: str) -> str:
    """Both means, and whether they differ in the same pictures: effect size and exact p."""
    apart = (other - one).values[:, None]
    effect, p = float(paired_g(apart)[0]), float(sign_flip_p(apart)[0])
    ends = interval(other - one)
    return (
        f"{float(one.mean()):.2f} {names[0]} and {float(other.mean()):.2f} {names[1]}: "
        f"a difference of {float(ends['mean']):+.2f} ({float(ends['low']):+.2f} to "
        f"{float(ends['high']):+.2f}), effect {effect:+.1f} standard deviations, p = {p:.3f}."
    )


def numbers(here: xarray.Dataset) -> str:
    """Mean and interval of a claim."""
    mean, low, high = (float(here[name]) for name in ("mean", "low", "high"))
    if not numpy.isfinite(mean):
        return "not told"
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def layers_words(verdicts: list[str]) -> str:
    """In which layers a claim holds, and in which its opposite does."""
    holds, opposite = (
        [str(layer) for layer, verdict in enumerate(verdicts) if verdict == wanted]
        for wanted in ("holds", "the opposite holds")
    )
    parts = [f"holds in {', '.join(holds)}"] if holds else []
    parts += [f"the opposite in {', '.join(opposite)}"] if opposite else []
    return "; ".join(parts)


if __name__ == "__main__":
    main()
