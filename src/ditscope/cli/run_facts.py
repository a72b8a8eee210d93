"""What `ditscope info` says of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ditscope.cli.words import edit_text, keep_text
from ditscope.errors import BadRequest

if TYPE_CHECKING:
    from ditscope.core.manifest import GuidanceRecord
    from ditscope.core.sites import Site
    from ditscope.runs.reader import Run
    from ditscope.runs.replay import Replayed

Facts = dict[str, object]
"""What is known of one thing, ready for JSON: text, numbers, lists and mappings of them."""


def run_facts(folder: Path) -> Facts:
    """What a run recorded, and how much of it is there."""
    from ditscope.runs.reader import open_run

    run = open_run(folder, allow_partial=True)
    manifest = run.manifest
    whole, planned = len(run.steps), len(manifest.steps)
    return {
        "kind": "run",
        "path": str(run.path),
        "state": ("complete" if run.complete else f"partial: {whole} of {planned} steps")
        + (f", {len(manifest.lost)} files lost" if manifest.lost else ""),
        "created": manifest.created,
        "model": manifest.model.name,
        "source": manifest.model.source,
        "weights": manifest.model.weights_sha256,
        "parameters": manifest.model.parameters,
        "ran_on": f"{manifest.model.device}, {manifest.model.dtype}",
        "labels": [label.name for label in manifest.labels],
        "seed": manifest.seed,
        "sampler": manifest.sampler.name,
        "steps": manifest.sampler.steps,
        "evaluations": planned,
        "guidance": guidance_text(manifest.guidance),
        "edits": [edit_text(edit) for edit in manifest.edits],
        "latent": list(manifest.latent_shape),
        "layers": len(manifest.sites),
        "attention": site_text(manifest.sites[0]) if manifest.sites else "not recorded",
        "statistics": list(manifest.statistics),
        "measured": keep_text(manifest.only) if manifest.statistics else "nothing",
        "qk_steps": list(manifest.qk_steps),
        "proof": proof_facts(run),
        "size": run_sizes(run),
        "cache": run.replays.usage()._asdict(),
        **({"lost": list(manifest.lost)} if manifest.lost else {}),
        "made_with": manifest.versions,
        "made_on": manifest.machine or "not recorded",
    }


def proof_facts(run: Run) -> dict[str, object]:
    """How far rebuilt attention was from the model's own, as it was found while recording."""
    heads = max((int(array.count()) for array in run.proof.values()), default=0)
    if not heads:
        return {}
    errors = {f"{name}_error": rounded(float(array.max())) for name, array in run.proof.items()}
    return {"heads": heads, **errors}


def rounded(error: float) -> float:
    """An error to two digits: its size is what matters."""
    return float(f"{error:.1e}")


def guidance_text(guidance: GuidanceRecord) -> str:
    """Classifier-free guidance in a few words."""
    text = f"scale {guidance.scale:g}"
    if guidance.channels is not None:
        text += f", first {guidance.channels} channels"
    if guidance.interval is not None:
        low, high = guidance.interval
        text += f", noise levels {low:g} to {high:g}"
    return text


def site_text(site: Site) -> str:
    """The shape of one attention call."""
    tokens = f"{site.queries} x {site.keys} tokens"
    if site.grid:
        tokens += f", patches {site.grid.height} x {site.grid.width}"
    return f"{site.heads} heads of width {site.head_width}, {tokens}"


def run_sizes(run: Run) -> dict[str, int]:
    """Bytes on disk of each part of a run."""
    parts: dict[str, int] = {}
    for name, record in run.manifest.files.items():
        part = name.removeprefix("data.zarr/").split("/")[0]
        parts[part] = parts.get(part, 0) + record.size
    parts.pop("zarr.json", None)
    return parts


def verification(folder: Path, *, replay: bool) -> Facts:
    """What `Run.verify` says of a run; with `replay`, also from running it again."""
    from ditscope.runs.reader import open_run

    found = open_run(folder, allow_partial=True).verify(replay=replay)
    return {
        "verified": {
            "files": found.num_files,
            "size": found.num_bytes,
            "attention rows": found.num_rows,
            **{f"{name}_error": rounded(value) for name, value in found.proof.items()},
        },
        **({"replayed": replay_facts(found.replayed)} if found.replayed else {}),
        "problems": list(found.problems),
    }


def replay_facts(found: Replayed) -> Facts:
    """What came of running the run again."""
    return {
        "steps": found.steps,
        "bit for bit": found.exact_steps,
        "largest difference": rounded(found.difference),
        **({"where": found.elsewhere} if found.elsewhere else {}),
    }


def repair_facts(path: str | None) -> Facts:
    """Repair the run at `path`; what was kept and what was not. Raises as `repair_run`."""
    from ditscope.runs.repair import repair_run

    if path is None:
        raise BadRequest("only a run can be repaired", field="--repair")
    found = repair_run(path)
    return {
        "repair": {
            "changed": found.changed,
            "steps": found.steps,
            "of": found.planned,
            "files": found.kept_files,
            "rebuilt": list(found.rebuilt),
            "regained": list(found.regained),
            "never written": list(found.never_written),
            "steps with losses": list(found.lost_steps),
        },
        "lost": list(found.lost),
    }
