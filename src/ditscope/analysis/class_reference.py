"""One class against the distribution of all others: is what attention does for it out of line?

The unit is a class: the mean over its samples, and the spread of these means over the other
classes. Testing single samples instead would call any class different once there are enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import xarray
from scipy import stats

from ditscope.analysis.coordinates import PLACE, by_noise, class_samples, comparable
from ditscope.analysis.testing import adjusted
from ditscope.core.axes import Branch
from ditscope.errors import BadRequest, listed
from ditscope.runs.reader import Run

LEAST_OTHERS = 3
"""Other classes below which there is no distribution to be out of."""


def against_others(
    run: Run,
    label: str | int,
    *,
    reference: Run | None = None,
    metrics: Sequence[str] | None = None,
    branch: Branch = "cond",
) -> xarray.Dataset:
    """How a class lies within the distribution of the means of the other classes.

    Args:
        run: a run with samples of the class.
        label: the class, by name or index.
        reference: the run with the other classes (samples of the same class in it are left out);
            None: `run` itself.
        metrics: names of statistics; None: those with a value for even attention.
        branch: "cond" or "uncond".

    Returns:
        (metric, noise, layer, head), in units of even attention: `mean`, of the class;
        `others_mean` and `others_spread` (standard deviation), of the means of the other classes;
        `z`, its distance in such deviations; `below`, the share of the other classes that lie below
        it; `p`, two-sided, of one case against a sample of n: t = z / sqrt(1 + 1 / n), n - 1
        degrees of freedom (Crawford and Howell 1998, doi:10.1076/clin.12.4.482.7241); `p_adjusted`
        for all tests at once. `others`: the names of the other classes, in attrs.

    Raises:
        BadRequest: fewer than three other classes; a class, metric or branch that is not in a run,
            or two runs of different models.
    """
    reference = run if reference is None else reference
    sites = [tuple((s.name, s.heads) for s in each.manifest.sites) for each in (run, reference)]
    if sites[0] != sites[1]:
        raise BadRequest(
            "the runs are of models with different layers or heads",
            field="reference",
            fix="Compare them by relative depth: ditscope compare",
        )
    own = by_noise(comparable(run, label, metrics, branch, reference))
    names = [record.name for record in reference.manifest.labels]
    called = run.manifest.labels[class_samples(run, label)[0]].name
    others = sorted({name for name in names if name != called})
    if len(others) < LEAST_OTHERS:
        raise BadRequest(
            f"{len(others)} other classes ({listed(others) or 'none'}) are no distribution",
            field="reference",
            expected=f"a run with at least {LEAST_OTHERS} classes besides {called!r}",
            fix="Record one: ditscope sample --attention-debug --num-samples 8",
        )
    rest = by_noise(comparable(reference, None, metrics, branch, run))
    rest = rest.assign_coords(class_name=("sample", numpy.array(names, dtype=object)))
    means = rest.groupby("class_name").mean("sample", skipna=False).sel(class_name=others)
    mean, spread = means.mean("class_name", skipna=False), means.std("class_name", ddof=1)
    here = own.mean("sample", skipna=False)
    z = ((here - mean) / spread.where(spread > 0)).transpose(*PLACE)
    p = 2 * stats.t.sf(abs(z) / numpy.sqrt(1 + 1 / len(others)), len(others) - 1)
    found = xarray.Dataset(
        {
            "mean": here,
            "others_mean": mean,
            "others_spread": spread,
            "z": z,
            "below": (means < here).mean("class_name").where(here.notnull()),
        }
    ).transpose(*PLACE)
    return found.assign(p=(PLACE, p), p_adjusted=(PLACE, adjusted(p))).assign_attrs(
        class_name=called, others=others, branch=branch
    )
