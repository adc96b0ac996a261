"""How the loss falls with parameters, tokens and FLOPs: power laws with an offset, over runs."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import curve_fit

from quarterhour.analysis.chapters.paper.tables import final_rows
from quarterhour.analysis.runs import Run
from quarterhour.analysis.statistics import CONFIDENCE

AXES = ("parameters", "tokens", "flops")
LAW = ("offset", "factor", "exponent")  # E, A and alpha of L = E + A · x^-alpha
MIN_POINTS = len(LAW) + 2
SAME = 0.02  # costs that differ by less, relative, are one: budgets are equal to a step
RESAMPLES = 200
SEED = 0
SLOWEST, FASTEST = 1e-3, 10  # exponents: beyond them, a line or a step fits as well
MAX_EVALUATIONS = 60


def points(runs: Sequence[Run]) -> pd.DataFrame:
    """One row for each configuration of each run that is complete: `data` (its fingerprint),
    `run`, `configuration`, `n` seeds, `parameters`, `tokens` and `flops` (of training), and
    `heldout_loss`, all means over the seeds."""
    tables = [_points(run) for run in runs]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _points(run: Run) -> pd.DataFrame:
    final = final_rows(run, ["tokens", "flops", "heldout_loss"]).dropna(subset=["heldout_loss"])
    settings = run.trials.reindex(columns=["configuration", "seed", "parameters"])
    trials = final.merge(settings, on=["configuration", "seed"]).drop(columns="seed")
    figures = trials.astype(dict.fromkeys([*AXES, "heldout_loss"], float))
    by_configuration = figures.groupby("configuration", sort=False)
    means: Any = by_configuration.mean()
    means = means.assign(n=by_configuration.size(), run=run.folder.name)
    return means.assign(data=run.experiment["data"].get("fingerprint", "")).reset_index()


def fits(runs: Sequence[Run]) -> pd.DataFrame:
    """For each set of `data` and each `axis`, L = E + A · x^-alpha (Hoffmann et al. 2022, one
    variable at a time) through the lowest held-out loss (nats) at each x: `offset` E, `factor` A,
    `exponent` alpha, each with `…_low` and `…_high`, and the number of `points`.

    The 95 % intervals come from 200 resamples of the residuals, always the same. There is no fit,
    and `reason` says why, with fewer than five points (those within 2 % of each other are one), or
    where no law is found. Other settings may differ between the points: what is fitted is the best
    that was found at each x.
    """
    measured = points(runs)
    groups = measured.groupby("data", sort=False) if len(measured) else []
    rows = [
        {"data": data, "axis": axis} | _fit(*_envelope(of_data, axis))
        for data, of_data in groups
        for axis in AXES
    ]
    bounds = [f"{name}{end}" for name in LAW for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["data", "axis", "points", *bounds, "reason"])


def law(x: np.ndarray, offset: float, factor: float, exponent: float) -> np.ndarray:
    """E + A · x^-alpha."""
    return offset + factor * x**-exponent


def _envelope(measured: pd.DataFrame, axis: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Each x, ascending, and the lowest loss there."""
    table = measured.loc[:, [axis, "heldout_loss"]].dropna().sort_values([axis])
    groups: list[float] = []
    for x in table[axis]:
        groups.append(groups[-1] if groups and x <= groups[-1] * (1 + SAME) else x)
    best: Any = table.reset_index(drop=True).groupby(groups)
    lowest = table.iloc[best["heldout_loss"].idxmin().to_numpy()]
    return tuple(lowest[axis]), tuple(lowest["heldout_loss"])


@cache  # a report asks twice: for its table and for its figure
def _fit(at: tuple[float, ...], losses: tuple[float, ...]) -> dict[str, Any]:
    if len(at) < MIN_POINTS:
        return {"points": len(at), "reason": f"{len(at)} points: a fit needs at least {MIN_POINTS}"}
    x, loss = np.array(at), np.array(losses)
    scale = float(np.exp(np.mean(np.log(x))))  # around it, A and alpha are hardly tied together
    start = (0.9 * loss.min(), max(float(np.ptp(loss)), 1e-3), 0.5)
    fitted = _parameters(x / scale, loss, start)
    laws = [] if fitted is None else _resampled(x / scale, loss, fitted)
    if fitted is None or len(laws) < RESAMPLES * CONFIDENCE:
        return {"points": len(x), "reason": "the points determine no power law with an offset"}
    tail = (1 - CONFIDENCE) / 2
    bounds = np.quantile([_unscaled(p, scale) for p in laws], [tail, 1 - tail], axis=0)
    row: dict[str, Any] = {"points": len(x), "reason": ""}
    for name, value, (low, high) in zip(LAW, _unscaled(fitted, scale), bounds.T, strict=True):
        row |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
    return row


def _resampled(x: np.ndarray, loss: np.ndarray, fitted: np.ndarray) -> list[np.ndarray]:
    """The law fitted to resampled residuals, as often as it converged; ends when it did too rarely.

    Residuals are too small by the degrees of freedom that the law has taken.
    """
    expected = law(x, *fitted)
    residuals = (loss - expected) * np.sqrt(len(x) / (len(x) - len(LAW)))
    rng = np.random.default_rng(SEED)
    laws: list[np.ndarray] = []
    for tried in range(RESAMPLES):
        found = _parameters(x, expected + rng.choice(residuals, len(x)), fitted)
        if found is not None:
            laws.append(found)
        elif tried + 1 - len(laws) > RESAMPLES * (1 - CONFIDENCE):
            break
    return laws


def _parameters(x: np.ndarray, loss: np.ndarray, start: Any) -> np.ndarray | None:
    """Least squares with E and A at least 0; None where it converges to no falling law."""
    bounds = ([0, 0, SLOWEST], [np.inf, np.inf, FASTEST])
    try:
        found = curve_fit(law, x, loss, p0=start, bounds=bounds, max_nfev=MAX_EVALUATIONS)[0]
    except RuntimeError:
        return None
    return found if SLOWEST * 1.01 < found[2] < FASTEST * 0.99 else None


def _unscaled(law_parameters: np.ndarray, scale: float) -> tuple[float, float, float]:
    offset, factor, exponent = law_parameters
    return offset, factor * scale**exponent, exponent
