"""Constructed attention: one head of each kind, as maps (query, key) on a grid, rows sum to 1."""

import numpy as np


def axes(grid):
    """Row and column of every patch."""
    return (axis.ravel() for axis in np.mgrid[: grid[0], : grid[1]])


def normal(weights):
    return weights / weights.sum(-1, keepdims=True)


def even(grid):
    count = grid[0] * grid[1]
    return np.full((count, count), 1 / count)


def nearly_even(grid, seed=0):
    random = np.random.default_rng(seed)
    return normal(np.exp(0.3 * random.normal(size=(grid[0] * grid[1],) * 2)))


def local(grid, width=0.7):
    y, x = axes(grid)
    apart = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    return normal(np.exp(-apart / (2 * width**2)))


def row(grid):
    y, _ = axes(grid)
    return normal((y[:, None] == y) + 1e-3)


def column(grid):
    _, x = axes(grid)
    return normal((x[:, None] == x) + 1e-3)


def diagonal(grid, offset=(0, 2)):
    """Each patch looks at the one `offset` away; at all alike where that is off the grid."""
    y, x = axes(grid)
    hit = (y == y[:, None] + offset[0]) & (x == x[:, None] + offset[1])
    return normal(hit + 1e-3)


def sink(grid, share=0.5):
    return (1 - share) * even(grid) + share * np.eye(grid[0] * grid[1])[:, :1].T


def semantic(grid, mask):
    """The object looks at the object, the rest at the rest."""
    inside = np.asarray(mask).ravel()
    return normal((inside[:, None] == inside) + 1e-3)


def far(grid, seed=0, keys=5):
    """A few patches all over the grid, others for each query."""
    random = np.random.default_rng(seed)
    count = grid[0] * grid[1]
    found = np.full((count, count), 1e-4)
    for weights in found:
        weights[random.choice(count, keys, replace=False)] = 1
    return normal(found)
