"""`kinds`: what kind of head each one is; rows are layers, columns are heads."""

from __future__ import annotations

import numpy
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ditscope.analysis.head_kinds import OTHER, head_kinds
from ditscope.core.axes import Branch
from ditscope.plot.head_atlas import BRANCH_WORDS
from ditscope.plot.sheet import LINE, MARGIN, WIDTH, Sheet, sheet, wrapped
from ditscope.plot.theme import INK, MUTED, NOTE, PANEL_TITLE, Plot, themed
from ditscope.plot.words import counted, sentence
from ditscope.runs.reader import Run

LEFT, HEAD_ROOM, LEGEND, GAP = 0.5, 0.42, 3.3, 0.3
CELL_WIDTH, CELL_HEIGHT = (0.12, 0.98), (0.2, 0.42)
NAME_WIDTH, LETTERS_WIDTH = 0.7, 0.25
"""Width of a cell (inches) in which its kind is written, and in which two letters of it are."""

KIND_COLOURS = {
    "dead": ("#1b1c1e", "white"),
    "sink": ("#d55e00", "white"),
    "diffuse": ("#c9cdd2", INK),
    "diagonal": ("#7b3294", "white"),
    "row": ("#a66fb5", "white"),
    "column": ("#d4b5dc", INK),
    "local": ("#0072b2", "white"),
    "semantic": ("#009e73", "white"),
    "branch-insensitive": ("#e69f00", INK),
    "global": ("#8fcbea", INK),
    OTHER: ("#ffffff", INK),
}
"""Fill and ink; after Okabe and Ito (2008), positional kinds in shades of one hue."""
SHORT = {"branch-insensitive": "no branch"}


@themed
def kinds(run: Run, *, branch: Branch = "cond", title: str | None = None) -> Plot:
    """Figure of the kind of every head, its name written in.

    Raises:
        BadRequest: no statistics, or the branch is not in the run.
    """
    found = head_kinds(run, branch=branch)
    called = found["called"].values
    rows, columns = called.shape
    room = WIDTH - 2 * MARGIN - LEFT - GAP - LEGEND
    cell = float(numpy.clip(room / columns, *CELL_WIDTH))
    high = float(numpy.clip(4.0 / rows, *CELL_HEIGHT))
    rules = dict(zip(found["kind"].values.tolist(), found["rule"].values.tolist(), strict=True))
    missing: dict[str, list[str]] = {}
    for kind, text in zip(found["kind"].values.tolist(), found["missing"].values, strict=True):
        if text:
            missing.setdefault(str(text), []).append(kind)
    present = [name for name in KIND_COLOURS if (called == name).any()]
    lines = {
        name: wrapped(rules.get(name, "no rule holds"), NOTE, LEGEND - 0.3) for name in present
    }
    legend = sum((len(text) + 1) * NOTE * LINE + 0.1 for text in lines.values())
    body = HEAD_ROOM + max(rows * high, legend)
    notes = [f"Not told: {', '.join(names)}. {text}" for text, names in missing.items()]
    page = sheet(
        title or "What kind of head each attention head is",
        sentence(
            counted("mean over", len(run.steps), "step"),
            counted("mean over", len(run.manifest.labels), "picture"),
            BRANCH_WORDS[branch],
        ),
        [*notes, "A head may be of several kinds; the most specific is shown."],
        body,
        width=2 * MARGIN + LEFT + columns * cell + GAP + LEGEND,
    )
    top = page.top + HEAD_ROOM
    axes = page.panel(MARGIN + LEFT, top, columns * cell, rows * high)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    for (layer, head), name in numpy.ndenumerate(called):
        if name:
            fill, ink = KIND_COLOURS[name]
            axes.add_patch(
                Rectangle((head - 0.5, layer - 0.5), 1, 1, facecolor=fill, edgecolor=MUTED, lw=0.5)
            )
            axes.text(
                head,
                layer,
                _written(name, cell),
                fontsize=NOTE,
                color=ink,
                ha="center",
                va="center",
            )
    _number(axes, rows, columns, cell)
    left = MARGIN + LEFT + columns * cell + GAP
    for name in present:
        words = f"{name}, {counted('', int((called == name).sum()), 'head').strip()}"
        top = _explain(page, left, top, name, words, lines[name])
    return page.figure


def _explain(page: Sheet, left: float, top: float, name: str, words: str, rule: list[str]) -> float:
    """One kind of the legend: its colour, `words` and the rule; where the next one begins."""
    page.panel(left, top + 0.015, 0.16, 0.13).set_facecolor(KIND_COLOURS[name][0])
    page.text(left + 0.24, top, words, color=INK)
    top += NOTE * LINE
    page.text(left + 0.24, top, "\n".join(rule), linespacing=1.25)
    return top + len(rule) * NOTE * LINE + 0.1


def _written(name: str, cell: float) -> str:
    """As much of a kind's name as fits a cell."""
    if cell >= NAME_WIDTH:
        return SHORT.get(name, name)
    return name[:2] if cell >= LETTERS_WIDTH else ""


def _number(axes: Axes, rows: int, columns: int, cell: float) -> None:
    """Numbers of layers and heads around the table."""
    heads = [str(i) if cell >= 0.2 or i % 5 == 0 else "" for i in range(columns)]
    axes.set_xticks(range(columns), heads)
    axes.set_yticks(range(rows), [str(i) for i in range(rows)])
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xlabel("head", fontsize=PANEL_TITLE)
    axes.xaxis.set_label_position("top")
    axes.set_ylabel("layer", fontsize=PANEL_TITLE)
