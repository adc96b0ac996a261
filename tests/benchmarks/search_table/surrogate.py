"""The table as a function: held-out losses at the eighths of any point, and seed noise as measured.

Gaussian processes, for the principal components of the eight losses, over the parameters' places
in their ranges. How far off they are is measured by cross-validation:

    python tests/benchmarks/search_table/surrogate.py
"""

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ground import BUDGET, SPACE, TABLE, Point, params_of, unit_of
from optuna.distributions import CategoricalDistribution
from optuna.trial import FixedTrial
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import KFold

LOSSES = [f"loss{eighth}" for eighth in range(1, 9)]
WORST = 7.0  # stands for a loss that is not finite; that of a uniform guess is 6.93
COMPONENTS, FOLDS, ALIKE, FITTED_ROWS = 4, 10, 15, 350


def read_table(path: Path = TABLE) -> pd.DataFrame:
    """The rows, with losses no worse than WORST."""
    table = pd.read_parquet(path)
    table[LOSSES] = table[LOSSES].fillna(WORST).clip(upper=WORST)
    return table


def features(params: Mapping[str, Any]) -> np.ndarray:
    """Places in the ranges, one for each choice, and how many steps and FLOPs it takes: [F].

    What a point does not have is in the middle of its range.
    """
    trial = FixedTrial({**params})
    SPACE(trial)
    values = {"optim.decay_fraction": 0.5, "optim.cycles": 0.5}
    for name, distribution in trial.distributions.items():
        if isinstance(distribution, CategoricalDistribution):
            for choice in distribution.choices:
                values[f"{name}={choice}"] = float(params[name] == choice)
        else:
            values[name] = unit_of(distribution, params[name])
    config = Point(origin="", params=params).config
    values["steps"] = np.log(config.budget.steps) / 4
    values["flops"] = np.log(BUDGET.amount * config.model.flops_per_token(config.data.seq_len)) / 4
    return np.array([values[name] for name in sorted(values)])


class Surrogate:
    """What a trial of any point would come to, fitted to rows of the table."""

    def __init__(self, table: pd.DataFrame) -> None:
        self._components = PCA(COMPONENTS).fit(table[LOSSES].to_numpy())
        inputs = np.stack([features(params_of(row)) for row in table.to_dict("records")])
        scores = self._components.transform(table[LOSSES].to_numpy())
        self._models = [gaussian_process(inputs, scores[:, n]) for n in range(COMPONENTS)]
        repeated = table[table.groupby("number")["seed"].transform("count") > 1]
        means = repeated.groupby("number")[LOSSES].transform("mean")
        # A mean of three has taken up a third of the variance.
        self._noise = (repeated[LOSSES] - means).to_numpy() * np.sqrt(3 / 2)
        self._noise_at = means["loss8"].to_numpy()

    def losses(self, params: Mapping[str, Any]) -> np.ndarray:
        """Expected held-out losses at the eighths: [8]."""
        inputs = features(params)[None]
        scores = np.concatenate([model.predict(inputs) for model in self._models])
        return self._components.inverse_transform(scores[None])[0]

    def noisy(self, params: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
        """Losses [8] with the seed noise of one measured curve, of those that end alike."""
        losses = self.losses(params)
        alike = np.argsort(abs(self._noise_at - losses[-1]))[: 3 * ALIKE]
        return losses + self._noise[rng.choice(alike)]


def gaussian_process(inputs: np.ndarray, targets: np.ndarray) -> GaussianProcessRegressor:
    """A process through all rows. Its lengths are found on some of them, which is much faster."""
    scales = Matern(np.ones(inputs.shape[1]), (1e-1, 1e2), nu=2.5)
    kernel = ConstantKernel(1.0, (1e-3, 1e3)) * scales + WhiteKernel(0.05, (1e-4, 1.0))
    some = np.random.default_rng(0).permutation(len(inputs))[:FITTED_ROWS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # lengths at their bound
        found = GaussianProcessRegressor(kernel, normalize_y=True).fit(inputs[some], targets[some])
    fixed = GaussianProcessRegressor(found.kernel_, optimizer=None, normalize_y=True)
    return fixed.fit(inputs, targets)


def cross_validated(table: pd.DataFrame) -> np.ndarray:
    """Losses [rows, 8] that each row's surrogate, fitted without its point, predicts."""
    predicted = np.full((len(table), len(LOSSES)), np.nan)
    numbers = table["number"].unique()
    for _, left_out in KFold(FOLDS, shuffle=True, random_state=0).split(numbers):
        is_out = table["number"].isin(numbers[left_out]).to_numpy()
        surrogate = Surrogate(table[~is_out])
        for row in np.flatnonzero(is_out):
            predicted[row] = surrogate.losses(params_of(table.iloc[row].to_dict()))
    return predicted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE)
    table = read_table(parser.parse_args().table)
    predicted, true = cross_validated(table)[:, -1], table["loss8"].to_numpy()
    better = true < np.quantile(true, 0.25)
    for name, rows in {"all": true > 0, "the best quarter": better}.items():
        error = predicted[rows] - true[rows]
        tau = stats.kendalltau(predicted[rows], true[rows]).statistic
        print(
            f"{name}: {rows.sum()} rows, final loss off by {np.sqrt(np.mean(error**2)):.3f}"
            f" (root mean square), {np.mean(abs(error)):.3f} (mean); standard deviation of the"
            f" losses {true[rows].std():.3f}; Kendall's tau {tau:.2f}"
        )


if __name__ == "__main__":
    main()
