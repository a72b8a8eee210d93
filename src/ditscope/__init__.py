"""ditscope: build, train and run Diffusion Transformers, and see what they attend to.

The names below load on first use, so that `import ditscope` is quick and loads no torch, and so
that a recorded run can be read on a machine that has none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ditscope.errors import missing_package
from ditscope.version import __version__

if TYPE_CHECKING:
    from ditscope import plot
    from ditscope.analysis.compare import compare
    from ditscope.analysis.diagnose.engine import diagnose
    from ditscope.attention.edits.ablate_heads import AblateHeads
    from ditscope.attention.edits.edit import edit
    from ditscope.attention.edits.temperature import Temperature
    from ditscope.attention.metrics.registry import metric
    from ditscope.attention.metrics.sampling import explain
    from ditscope.attention.metrics.segments import mask_metric
    from ditscope.attention.watch import watch
    from ditscope.core.keep import Keep
    from ditscope.evaluation.evaluate import evaluate
    from ditscope.model.config import DiTConfig
    from ditscope.model.dit import DiT, build
    from ditscope.pipeline import load
    from ditscope.runs.reader import open_run
    from ditscope.runs.repair import repair_run
    from ditscope.sampling.draw import sample
    from ditscope.sampling.probe import probe

__all__ = [
    "AblateHeads",
    "DiT",
    "DiTConfig",
    "Keep",
    "Temperature",
    "__version__",
    "build",
    "compare",
    "diagnose",
    "edit",
    "evaluate",
    "explain",
    "load",
    "mask_metric",
    "metric",
    "open_run",
    "plot",
    "probe",
    "repair_run",
    "sample",
    "watch",
]

# No name here may also be a module of this package, `plot` apart: importing the module would put
# it in the place of the function.
_HOME = {
    "AblateHeads": "ditscope.attention.edits.ablate_heads",
    "DiT": "ditscope.model.dit",
    "DiTConfig": "ditscope.model.config",
    "Keep": "ditscope.core.keep",
    "Temperature": "ditscope.attention.edits.temperature",
    "build": "ditscope.model.dit",
    "compare": "ditscope.analysis.compare",
    "diagnose": "ditscope.analysis.diagnose.engine",
    "edit": "ditscope.attention.edits.edit",
    "evaluate": "ditscope.evaluation.evaluate",
    "explain": "ditscope.attention.metrics.sampling",
    "load": "ditscope.pipeline",
    "mask_metric": "ditscope.attention.metrics.segments",
    "metric": "ditscope.attention.metrics.registry",
    "open_run": "ditscope.runs.reader",
    "probe": "ditscope.sampling.probe",
    "repair_run": "ditscope.runs.repair",
    "sample": "ditscope.sampling.draw",
    "watch": "ditscope.attention.watch",
}


def __getattr__(name: str) -> object:
    if name == "plot":
        return importlib.import_module("ditscope.plot")
    if name not in _HOME:
        raise AttributeError(f"module 'ditscope' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOME[name]), name)
    except ModuleNotFoundError as reason:
        raise missing_package(reason, f"ditscope.{name}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
