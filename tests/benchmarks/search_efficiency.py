"""Compute until the best of the six is beaten: this search, parts of it, and Ray's own parts.

Quick profile, equal token budgets, one trial at a time. Every method searches the same space with
the same training seed; only its own seed differs. What the six cost, which set the mark, counts for
none of them. Raw results stay in the folder given:

    python tests/benchmarks/search_efficiency.py --folder efficiency --seeds 5
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import torch
from rich.console import Console
from rich.table import Table
from scipy import stats

from quarterhour.search_spaces.open_ended import open_ended
from quarterhour.search_spaces.profiles import QUICK
from quarterhour.tune.experiment import Experiment
from quarterhour.tune.ledger import TrialSpec, prepare_trials
from quarterhour.tune.places import Resources
from quarterhour.tune.progress import SearchProgress
from quarterhour.tune.run_reader import read_rows
from quarterhour.tune.search import study
from quarterhour.tune.search.first_points import starting_points
from quarterhour.tune.search.sampler import SEED_STRIDE, tpe
from quarterhour.tune.search.settings import Search, SearchRequest, build_search
from quarterhour.tune.training.trial import Trial

ONE_CORE = Resources(device="cpu", cpus=1, gpus=0, cpus_per_trial=1, gpus_per_trial=0)
METHODS = {
    "quarterhour search": "ours",
    "the same with Optuna's TPE alone": "tpe",
    "random search": "random",
    "OptunaSearch + ASHAScheduler": "plain",
}
# Each method may spend as much as about this many whole trials of the baseline.
WHOLE_TRIALS = 12


def build(folder: Path, tokens: str, seed: int) -> tuple[Experiment, Search]:
    request = SearchRequest(
        space="open-ended", budget=f"tokens:{tokens}", objective="heldout_loss", scheduler=None,
        seeds=(0,), profile="quick", corpus=None, tokenizer=None, values={},
        name=folder.name, runs=folder.parent, resources=ONE_CORE,
    )  # fmt: skip
    experiment, search = build_search(request)
    return experiment, replace(search, seed=seed)


def train_six(folder: Path, tokens: str) -> None:
    """Train the six, once."""
    experiment, _ = build(folder / "six", tokens, 0)
    with experiment.opened():
        for spec in prepare_trials(experiment.trials(), folder):
            list(Trial(spec, experiment.tokens, torch.device("cpu")).rows())
    for spec in experiment.trials():
        print(f"{spec.name:<12} held-out loss {read_rows(spec.folder)[-1]['heldout_loss']:.4f}")


def search_ours(folder: Path, tokens: str, seed: int, method: str = "ours") -> list[TrialSpec]:
    from quarterhour.tune.cluster.searcher import run_search
    from quarterhour.tune.search.limits import Limits
    from quarterhour.tune.search.state import SearchState

    experiment, search = build(folder / f"{method}{seed}", tokens, seed)
    limits = Limits(trials=6 + 2 * WHOLE_TRIALS, hours=None)
    with experiment.opened(), SearchProgress(Console(), limits.trials) as progress:
        first_points = starting_points(search, [])
        state = SearchState(search, experiment.resources, first_points, limits, progress)
        run_search(state, experiment, progress)
    return search.trials()[6:]


def search_tpe(folder: Path, tokens: str, seed: int) -> list[TrialSpec]:
    """Ours, but all is proposed by Optuna's model."""
    study.sampler = lambda own_seed, number: tpe(own_seed * SEED_STRIDE + number)
    return search_ours(folder, tokens, seed, "tpe")


def search_random(folder: Path, tokens: str, seed: int) -> list[TrialSpec]:
    experiment, search = build(folder / f"random{seed}", tokens, seed)
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    with experiment.opened():
        for number in range(WHOLE_TRIALS):
            spec = search.trial(number, search.config_of(search.space(drawn.ask())), "random")
            list(Trial(spec, experiment.tokens, torch.device("cpu")).rows())
    return search.trials()


def quick_space(trial: optuna.Trial) -> None:
    """The same space as OptunaSearch needs it: a function that can be pickled."""
    open_ended(QUICK)(trial)


def search_plain(folder: Path, tokens: str, seed: int) -> list[TrialSpec]:
    """As Ray ships them: defaults, the held-out loss reported at each quarter of the budget."""
    from ray import tune as ray_tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    from quarterhour.tune.cluster.connection import connected

    experiment, search = build(folder / f"plain{seed}", tokens, seed)
    experiment.folder.mkdir(parents=True, exist_ok=True)

    def train(values: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        number = len(list(experiment.folder.glob("[0-9]*")))
        spec = search.trial(number, search.config_of(point_of(values)), "plain")
        for row in Trial(spec, experiment.tokens, torch.device("cpu")).rows():
            if row["step"] in spec.config.budget.quarter_ends():
                ray_tune.report(row)

    with connected(ONE_CORE) as storage:
        ray_tune.Tuner(
            train,
            tune_config=ray_tune.TuneConfig(
                search_alg=OptunaSearch(quick_space, metric="heldout_loss", mode="min", seed=seed),
                scheduler=ASHAScheduler(metric="heldout_loss", mode="min"),
                num_samples=2 * WHOLE_TRIALS,
                max_concurrent_trials=1,
            ),
            run_config=ray_tune.RunConfig(storage_path=storage, verbose=0),
        ).fit()
    return search.trials()


def point_of(values: dict[str, Any]) -> dict[str, Any]:
    """A point from the space's parameters, as OptunaSearch hands them on."""
    values = dict(values)
    d_model = values["model.d_model"]
    heads = d_model // values.pop("model.d_head")
    return values | {"model.n_heads": heads, "model.d_ff": 4 * d_model}


SEARCHES = {"ours": search_ours, "tpe": search_tpe, "random": search_random, "plain": search_plain}


def outcome(spec: TrialSpec) -> dict[str, Any]:
    """What a trial cost, and its held-out loss if it came to its end."""
    last = read_rows(spec.folder)[-1]
    whole = last["step"] == spec.config.budget.trained_steps
    return {"flops": last["flops"], "heldout_loss": last["heldout_loss"] if whole else None}


def flops_to_beat(outcomes: list[dict[str, Any]], mark: float, limit: float) -> float:
    """FLOPs spent until a whole trial is below the mark; the limit if none is until then."""
    spent = 0.0
    for trial in outcomes:
        spent += trial["flops"]
        if trial["heldout_loss"] is not None and trial["heldout_loss"] < mark:
            return min(spent, limit)
    return limit


def best_within(outcomes: list[dict[str, Any]], limit: float) -> float:
    """Best held-out loss of the whole trials that ended before the limit of FLOPs."""
    spent, best = 0.0, float("inf")
    for trial in outcomes:
        spent += trial["flops"]
        if spent > limit:
            break
        best = min(best, trial["heldout_loss"] or best)
    return best


def with_interval(values: list[float], unit: float = 1.0) -> str:
    """Mean and 95 % interval (Student t)."""
    mean = statistics.fmean(values) / unit
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} ± {half / unit:.3f}"


def report(folder: Path, tokens: str, seeds: int) -> None:
    """The table, from the raw results."""
    experiment, _ = build(folder / "six", tokens, 0)
    mark = min(read_rows(spec.folder)[-1]["heldout_loss"] for spec in experiment.trials())
    whole = experiment.trials()[0].flops
    limit = WHOLE_TRIALS * whole
    print(f"budget tokens:{tokens} a trial, {seeds} seeds; best of the six: {mark:.4f}")
    table = Table("method", "FLOPs until beaten / whole trial", "not beaten", "best held-out loss")
    for name, method in METHODS.items():
        paths = [folder / f"{method}{seed}.json" for seed in range(seeds)]
        runs = [json.loads(path.read_text()) for path in paths]
        spent = [flops_to_beat(run, mark, limit) for run in runs]
        best = [best_within(run, limit) for run in runs]
        censored = sum(value == limit for value in spent)
        table.add_row(name, with_interval(spent, whole), str(censored), with_interval(best))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tokens", default="100k")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", help="one search, e.g. ours:0, in this process")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.only:
        method, seed = asked.only.split(":")
        specs = SEARCHES[method](asked.folder, asked.tokens, int(seed))
        result = json.dumps([outcome(spec) for spec in specs])
        (asked.folder / f"{method}{seed}.json").write_text(result)
        return
    train_six(asked.folder, asked.tokens)
    for seed in range(asked.seeds):
        for method in METHODS.values():
            if not (asked.folder / f"{method}{seed}.json").exists():
                command = [sys.executable, __file__, "--only", f"{method}:{seed}"]
                command += ["--folder", str(asked.folder), "--tokens", asked.tokens]
                subprocess.run(command, check=True)
    report(asked.folder, asked.tokens, asked.seeds)


if __name__ == "__main__":
    main()
