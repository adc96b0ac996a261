"""What the study published, and why a run is not to be compared with it.

The figures are in published/: published_tables.json as its paper prints them, published_runs.json
as its notebook recorded them (vukrosic/do-small-llm-research, MIT, one Tesla T4).
"""

import json
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from quarterhour.analysis.runs import Run, last_evaluation
from quarterhour.tune.run_folder import Status

SIX = ("baseline", "high_lr", "low_lr", "large_batch", "short_seq", "small_model")
"""The study's configurations."""
STUDY = "“15-minute pretraining ablations”, vukrosic/do-small-llm-research, one Tesla T4"
"""What it is called, and where it is."""
FOLDER = Path(__file__).parent / "published"
"""Where the figures are."""

_CLOCK = "published clock did not wait for its Tesla T4"
_TRAINING_BATCH = "published Val accuracy and perplexity are training-batch values"
COLUMN_REASONS = {
    "steps_per_second": _CLOCK,
    "step_time_mean_s": _CLOCK,
    "step_time_std_s": _CLOCK,
    "tokens_per_second": _CLOCK,
    "memory_usage": "published memory is a word, not a measurement",
    "val_accuracy": _TRAINING_BATCH,
    "val_perplexity": _TRAINING_BATCH,
}
"""Columns whose published figures are comparable in no run, and why."""

_STEPS = 2000
_LAST_EVALUATION = 0.8  # of the steps
_RUN = {
    "corpus": "HuggingFaceTB/smollm-corpus:cosmopedia-v2",
    "tokenizer": "HuggingFaceTB/SmolLM-135M",
    "train_documents": 500,
    "protocol": "as-run",
}
_SHARED = {
    "model.vocab_size": 49_152,
    "model.dropout": 0.0,
    "budget.steps": _STEPS,
    "budget.eval_batches": 20,
    "optim.schedule": "cosine",
    "optim.beta1": 0.9,
    "optim.weight_decay": 0.1,
    "optim.eps": 1e-8,
    "optim.clip_norm": 1.0,
    "optim.final_lr_fraction": 0.1,
    "precision": "fp16",
}
# Parts of decoder and optimizer that the study had no other of. Trials of version 0.1 lack them.
_PARTS = {
    "model.rope_base": 1024,
    "model.attention": "full",
    "model.soft_cap": 0,
    "model.heads_per_kv": 1,
    "model.norm": "rms",
    "model.norm_place": "pre",
    "model.qk_norm": "none",
    "model.feed_forward": "silu",
    "model.head": "tied",
    "model.residual_init": "equal",
    "optim.z_loss": 0,
    "optim.optimizer": "adamw",
}
_SET_BY_PROTOCOL = {"model.positions": "none", "optim.beta2": 0.999, "optim.warmup_fraction": 0.0}


def tables() -> dict[str, pd.DataFrame]:
    """The eight tables as the paper prints them, one row per configuration."""
    return {
        name: pd.DataFrame.from_dict(table["rows"], orient="index", columns=table["columns"])
        for name, table in _tables().items()
        if name not in ("source", "text_claims")
    }


def summary() -> pd.DataFrame:
    """The study's recorded figures, unrounded, in the columns of `measures.summarise`."""
    settings = _settings()
    rows = [_summary_row(name, settings[name], run) for name, run in _recorded().items()]
    return pd.DataFrame(rows)


@cache  # every figure of curves asks for it
def rows() -> pd.DataFrame:
    """The study's recorded series in the columns of `Run.rows`, by optimizer updates.

    It has the training loss after every 100th step (counted from 0) and the evaluations after every
    400th. The learning rate, the gradient norm and the step time were not recorded.
    """
    return pd.concat([_series(name, run) for name, run in _recorded().items()], ignore_index=True)


def claims() -> dict[str, Any]:
    """Figures of the paper's text: a number, a list of them, or numbers by configuration."""
    return _tables()["text_claims"]


def measures() -> set[str]:
    """Names of everything that the study recorded of its runs."""
    return {name for run in _recorded().values() for name in run}


def has_studied(run: Run) -> bool:
    """Whether one of the run's configurations is one of the study's six."""
    return not set(SIX).isdisjoint(run.trials["configuration"])


def beside_the_study(run: Run) -> str:
    """How the run differs from the study, in a sentence."""
    if not has_studied(run):
        return "The study has none of these configurations: no published figure stands beside them."
    return f"Differences from the study: {'; '.join(differences(run).values()) or 'none'}."


@lru_cache(maxsize=64)  # every table and figure asks for it
def differences(run: Run, *configurations: str) -> dict[str, str]:
    """Why these configurations (all, if none is named) are not comparable with the published ones.

    The reasons stand by kind of difference; there are none where no difference is known. Each kind
    is told once, as the first configuration has it. A configuration that the study lacks has no
    published figure beside it, and is left out.
    """
    settings = _settings()
    asked = [name for name in configurations or settings if name in settings]
    reasons = _run_differences(run.experiment)
    told = run.trials.reindex(columns=["budget.steps"]).notna().any(axis="columns")
    for trial in run.trials.loc[told & run.trials["configuration"].isin(asked)].to_dict("records"):
        study = _study_config(settings[trial["configuration"]], run.experiment["protocol"])
        for kind, reason in _trial_differences(trial, study).items():
            reasons.setdefault(kind, reason)
    return reasons


def _run_differences(experiment: dict[str, Any]) -> dict[str, str]:
    ours = experiment["data"] | {"protocol": experiment["protocol"]}
    return {
        what: f"{what} {ours[what]} instead of {theirs}"
        for what, theirs in _RUN.items()
        if ours[what] != theirs
    }


def _trial_differences(trial: dict[str, Any], study: dict[str, Any]) -> dict[str, str]:
    """Reasons by kind of difference: a smaller model is one reason and not five."""
    reasons: dict[str, str] = {}
    for path, theirs in (study | _PARTS).items():
        ours: Any = trial.get(path)
        if ours != theirs and not (path in _PARTS and pd.isna(ours)):
            reasons.setdefault(*_reason(path, ours, theirs))
    steps, stop = trial["budget.steps"], trial["budget.max_steps"]
    if pd.notna(stop) and stop < steps:
        reasons["number of steps"] = f"stopped after {stop:,.0f} of {steps:,.0f} steps"
    evaluated = last_evaluation(steps, trial["budget.eval_every"]) / steps
    if abs(evaluated - _LAST_EVALUATION) > 0.01:
        where = f"{evaluated:.0%} of the steps instead of {_LAST_EVALUATION:.0%}"
        reasons["last evaluation"] = f"last evaluated after {where}"
    return reasons


def _reason(path: str, ours: Any, theirs: Any) -> tuple[str, str]:
    """Kind and wording of one difference."""
    section, _, field = path.rpartition(".")
    if field == "steps":
        return field, f"{ours:,.0f} steps instead of {theirs:,}"
    ours, theirs = (value if isinstance(value, str) else f"{value:g}" for value in (ours, theirs))
    if section == "model" and path not in ("model.positions", "model.dropout", *_PARTS):
        return "model size", f"model size: {field} {ours} instead of {theirs}"
    return field, f"{field} {ours} instead of {theirs}"


def _study_config(settings: dict[str, Any], protocol: str) -> dict[str, Any]:
    """The study's configuration under dotted names, less what another protocol sets anyway."""
    return {
        **{f"model.{name}": settings[name] for name in ("d_model", "n_heads", "n_layers")},
        "model.d_ff": 4 * settings["d_model"],
        **_SHARED,
        **{f"data.{name}": settings[name] for name in ("batch_size", "seq_len")},
        "optim.learning_rate": settings["learning_rate"],
        **(_SET_BY_PROTOCOL if protocol == _RUN["protocol"] else {}),
    }


def _summary_row(name: str, settings: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    return {
        "configuration": name,
        "seed": 0,
        "status": Status.COMPLETE,
        **settings,
        "total_tokens": settings["batch_size"] * settings["seq_len"] * _STEPS,
        "train_loss_last": run["train_loss_last_step"],
        "study_eval_loss": run["eval_loss"][-1],
        "accuracy": run["train_batch_accuracy"][-1],
        "perplexity": run["train_batch_perplexity"][-1],
        "confidence": run["train_batch_confidence"][-1],
        "initial_top5": run["train_batch_top5_accuracy"][0],
        "final_top5": run["train_batch_top5_accuracy"][-1],
        "initial_val_loss": run["eval_loss"][0],
        "val_accuracy": run["eval_accuracy"][-1],
        "val_perplexity": run["eval_perplexity"][-1],
        "early_loss": run["mean_train_loss_first_quarter"],
        "late_loss": run["mean_train_loss_last_quarter"],
        **{name: run[name] for name in ("steps_per_second", "step_time_mean_s", "step_time_std_s")},
        "peak_memory_bytes": float("nan"),
        "trials_on_device": 1.0,
    }


def _series(name: str, run: dict[str, Any]) -> pd.DataFrame:
    every_100 = pd.DataFrame({"train_loss_last": run["train_loss_every_100_steps"]})
    every_100["step"] = 100 * every_100.index + 1
    measures = [key for key in run if key.startswith(("eval_", "train_batch_"))]
    evaluated = pd.DataFrame({key: run[key] for key in measures if key != "eval_steps"})
    evaluated["step"] = [step + 1 for step in run["eval_steps"]]
    return every_100.merge(evaluated, how="left", on="step").assign(configuration=name, seed=0)


def _settings() -> dict[str, dict[str, Any]]:
    table = _tables()["configurations"]
    columns = table["columns"]
    return {name: dict(zip(columns, row, strict=True)) for name, row in table["rows"].items()}


def _tables() -> dict[str, Any]:
    return _read(FOLDER / "published_tables.json")


def _recorded() -> dict[str, Any]:
    return _read(FOLDER / "published_runs.json")["configurations"]


@cache
def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_bytes())
