"""Every metric from the full matrix in float64, by its definition and without our code."""

import math

import torch

from ditscope.core.statistics import RADII, SEGMENTS, SINK, TOP_KEYS
from tests.attention.reference import by_hand


def exact_metrics(call, grid=None, segments=()):
    """Per head: by name (B, H). Per token: by name (B, H, N), or (B, H, M) of received ones."""
    p = by_hand(call).p
    tokens = per_query(p) | per_place(p, grid) | per_key(p) | segment_masses(p, grid, segments)
    heads = {name: value.nanmean(-1) for name, value in tokens.items()}
    tokens["effective_keys"] = tokens["entropy"].exp()
    heads["effective_keys"] = heads["entropy"].exp()
    tokens["rms_distance"] = tokens["mean_square"].sqrt()
    heads["rms_distance"] = heads["mean_square"].sqrt()
    heads["received_max"] = tokens["received_max"].amax(-1)
    for name in ("sink_tokens", "sink_mass"):
        heads[name] = tokens[name].sum(-1)
    covariance = tokens.pop("covariance")
    tokens["anisotropy"] = elongation(covariance)
    heads["anisotropy"] = elongation(covariance.nanmean(-3))
    del tokens["mean_square"], heads["mean_square"], heads["covariance"]
    heads["low_frequency"], heads["high_frequency"] = spectrum(p.nanmean(-2), grid)
    return heads, tokens


def per_query(p):
    entropy = -torch.special.xlogy(p, p).sum(-1)
    keys = p.shape[-1]
    ordered = p.sort(-1, descending=True).values
    found = {
        "entropy": entropy,
        "entropy_share": entropy / math.log(keys) if keys > 1 else entropy * math.nan,
        "participation": 1 / (p * p).sum(-1),
        "largest_probability": ordered[..., 0],
        "head_similarity": head_similarity(p),
    }
    return found | {f"top_mass_{k}": ordered[..., :k].sum(-1) for k in TOP_KEYS}


def head_similarity(p):
    heads = p.shape[1]
    roots = p.sqrt()
    pairs = torch.einsum("bhnm,bgnm->bnhg", roots, roots)
    pairs = pairs - torch.diag_embed(pairs.diagonal(dim1=-2, dim2=-1))
    return (pairs.sum(-1) / (heads - 1)).permute(0, 2, 1) if heads > 1 else p[..., 0] * math.nan


def per_place(p, grid):
    """NaN for tokens that are no patches, or see none."""
    names = ("mean_square", "mean_distance", "centroid_offset", "covariance")
    names += tuple(f"mass_within_{r}" for r in RADII)
    nothing = torch.full(p.shape[:3], math.nan, dtype=torch.double)
    if grid is None:
        return {name: nothing for name in names} | {
            "covariance": nothing[..., None, None].expand(*p.shape[:3], 2, 2)
        }
    image = slice(grid.start, grid.start + grid.count)
    among = p[..., image, image]
    among = among / among.sum(-1, keepdim=True)
    token = torch.arange(grid.count)
    x = torch.stack(
        [
            token // (grid.height * grid.width),
            token // grid.width % grid.height,
            token % grid.width,
        ],
        -1,
    ).double()
    apart = (x[:, None] - x).norm(dim=-1)
    centre = among @ x
    off = x - centre.unsqueeze(-2)  # (B, H, n, I, 3)
    covariance = torch.einsum("bhij,bhija,bhijc->bhiac", among, off, off)[..., 1:, 1:]
    found = {
        "mean_square": (among * apart**2).sum(-1),
        "mean_distance": (among * apart).sum(-1),
        "centroid_offset": (centre - x).norm(dim=-1),
    }
    found |= {f"mass_within_{r}": (among * (apart <= r + 1e-9)).sum(-1) for r in RADII}
    whole = {}
    for name, value in found.items():
        whole[name] = nothing.clone()
        whole[name][..., image] = value
    whole["covariance"] = nothing[..., None, None].repeat(1, 1, 1, 2, 2)
    whole["covariance"][:, :, image] = covariance
    return whole


def elongation(covariance):
    finite = covariance.nan_to_num(0.0)
    small, large = torch.linalg.eigvalsh(finite).unbind(-1)
    return ((large - small) / (large + small)).masked_fill(
        covariance.isnan().any(-1).any(-1), math.nan
    )


def per_key(p):
    share = p.nanmean(-2)
    sink = share > SINK / p.shape[-1]
    return {
        "received_max": share,
        "sink_tokens": sink.double() + 0 * share,
        "sink_mass": share * sink,
    }


def segment_masses(p, grid, segments):
    spans = {kind: [s for s in segments if s.kind == kind] for kind in SEGMENTS}
    spans["image"] = [grid] if grid else []
    found = {}
    for kind, some in spans.items():
        parts = [p[..., s.start : s.start + s.count].sum(-1) for s in some]
        found[f"mass_{kind}"] = sum(parts) if parts else torch.full_like(p[..., 0], math.nan)
    return found


def spectrum(share, grid):
    """Shares of power by an explicit Fourier sum."""
    if grid is None:
        return (share[..., 0] * math.nan,) * 2
    image = share[..., grid.start : grid.start + grid.count]
    total, low, high = (torch.zeros(share.shape[:-1], dtype=torch.double) for _ in range(3))
    token = torch.arange(grid.count)
    t, y, x = (
        token // (grid.height * grid.width),
        token // grid.width % grid.height,
        token % grid.width,
    )
    for a in range(grid.frames):
        for b in range(grid.height):
            for c in range(grid.width):
                turns = a * t / grid.frames + b * y / grid.height + c * x / grid.width
                power = (image * torch.exp(-2j * math.pi * turns.double())).sum(-1).abs() ** 2
                fy = min(b, grid.height - b) / grid.height
                fx = min(c, grid.width - c) / grid.width
                frequency = math.hypot(fy, fx)
                total += power
                low += power * (0 < frequency <= 0.25 + 1e-9)
                high += power * (frequency > 0.25 + 1e-9)
    return low / total, high / total
