"""Draws identities.png beside itself, for docs/identities.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIDE, WIDTH, QUERY = 6, 8, 14
GREY = "#555555"


def softmax(scores: np.ndarray) -> np.ndarray:
    """Rows that sum to 1."""
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def head() -> tuple[np.ndarray, ...]:
    """Places, q and k of one head of 6 x 6 patches that looks below itself, and at one patch."""
    y, x = np.divmod(np.arange(SIDE * SIDE), SIDE)
    place = np.stack([y, x], -1).astype(float)
    centre = (place - place.mean(0)) / 2
    square = (centre**2).sum(-1, keepdims=True)
    one = np.ones_like(square)
    sink = (np.arange(SIDE * SIDE) == 27)[:, None] * 1.3
    wave = np.sin(np.arange(SIDE * SIDE)[:, None] * np.arange(1, WIDTH - 3) / 3)
    k = np.concatenate([centre, -square, sink, 0.6 * wave], -1)
    q = np.concatenate([2 * (centre + np.array([0.5, 0.0])), one, one, 0.3 * wave], -1)
    return place, 1.6 * q, k


def main() -> None:
    """One row a statistic: the same map, other values."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    place, q, k = head()
    p = softmax(q @ k.T)
    values = np.cos(np.arange(SIDE * SIDE)[:, None] * np.arange(1, WIDTH + 1) / 5 + 1)
    centred = place - place.mean(0)
    features = np.concatenate([centred, (centred**2).sum(-1, keepdims=True)], -1)
    features = features / np.abs(features).max(0)
    received = p.sum(0)
    rows = [
        ("the model's own call", "P", p, "values", values, p @ values),
        ("entropy", "P", p, "keys as values", k, p @ k),
        ("place", "P", p, "y, x, y² + x²", features, p @ features),
        ("received", "q and k swapped", (p / received).T, "none", None, None),
    ]
    figure, axes = plt.subplots(
        4, 4, figsize=(9.5, 9), width_ratios=[1, 0.7, 0.7, 1], constrained_layout=True
    )
    for line, (name, map_name, weights, values_name, columns, result) in zip(
        axes, rows, strict=True
    ):
        line[0].imshow(weights, cmap="Blues", vmax=0.25)
        line[0].set_title(map_name, fontsize=10)
        line[0].set_ylabel(name, fontsize=12, fontweight="bold")
        for axis, shown, title in (
            (line[1], columns, f"$\\times$ {values_name}"),
            (line[2], result, "="),
        ):
            if shown is None:
                axis.axis("off")
                continue
            axis.imshow(shown, cmap="RdBu_r", aspect="auto", vmin=-2, vmax=2)
            axis.set_title(title, fontsize=10)
        for axis in line[:3]:
            axis.set_xticks([])
            axis.set_yticks([])
    axes[0][3].axis("off")
    axes[0][3].text(
        0.05, 0.4, "the output goes on\nthrough the network,\nuntouched", fontsize=12, color=GREY
    )
    entropy = -(p * np.log(p)).sum(-1)
    show(axes[1][3], entropy, "entropy of each query:\nlog-sum-exp less ⟨q, P k⟩")
    seen = show(axes[2][3], p[QUERY], "mean place and spread\nof one query")
    mean = p[QUERY] @ place
    start = place[QUERY]
    seen.annotate(
        "", mean[::-1], start[::-1], arrowprops={"arrowstyle": "->", "color": "#d62728", "lw": 2}
    )
    spread = np.sqrt(p[QUERY] @ ((place - mean) ** 2).sum(-1))
    seen.add_patch(plt.Circle(mean[::-1], spread, fill=False, color="#d62728", lw=1.5))
    show(axes[3][3], received, "what each key receives:\nits log-sum-exp is the log of this")
    axes[3][1].text(
        0.0,
        0.5,
        "no values are needed:\nthe log-sum-exp of this\ncall says it",
        fontsize=10,
        color=GREY,
    )
    figure.savefig(Path(__file__).with_name("identities.png"), dpi=110)


def show(axis: object, numbers: np.ndarray, title: str) -> object:
    """Numbers of the patches, on their grid."""
    axis.imshow(numbers.reshape(SIDE, SIDE), cmap="Blues")
    axis.set_title(title, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])
    return axis


if __name__ == "__main__":
    main()
