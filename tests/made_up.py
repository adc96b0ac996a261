"""Made-up runs for the report: a grid of the six, and a search."""

import json
import math
import random
from pathlib import Path
from typing import Any

from test_runs import BASELINE, COMPLETE, UNTOLD, write_experiment, write_trial

SIX = {
    "baseline": {},
    "high_lr": {"optim.learning_rate": 1e-3},
    "low_lr": {"optim.learning_rate": 1e-4},
    "large_batch": {"data.batch_size": 16, "optim.learning_rate": 5e-4},
    "short_seq": {"data.batch_size": 12, "data.seq_len": 256},
    "small_model": {
        "model.d_model": 256, "model.n_heads": 4, "model.n_layers": 8, "model.d_ff": 1024,
        "data.batch_size": 12,
    },
}  # fmt: skip
DOMAINS = {
    "model.d_model": [128, 768],
    "model.d_ff": [512, 3072],
    "model.n_layers": [4, 24],
    "data.batch_size": [2, 32],
    "optim.learning_rate": [3e-5, 1e-2],
    "optim.weight_decay": [1e-3, 1.0],
    "optim.beta1": [0.8, 0.98],
    "optim.schedule": ["constant", "cosine", "linear"],
}


def row(step: int, window: int, loss: float, tokens: int, evaluation: bool) -> dict[str, Any]:
    """One row of a trial whose training loss is `loss`."""
    measures: dict[str, Any] = {
        "step": step, "window_steps": window, "tokens": tokens, "epochs": tokens / 366_493,
        "flops": tokens * 10_000_000, "seconds": step / 4, "train_loss": loss,
        "train_loss_last": loss, "grad_norm": 1 / loss, "learning_rate": 1e-3 * (1 - step / 4000),
        "step_seconds": 0.25, "step_seconds_std": 0.01, "tokens_per_second": tokens / step * 4,
        "peak_memory_bytes": 10**9, "trials_on_device": 1,
    }  # fmt: skip
    if evaluation:
        for prefix in ("train_batch", "eval"):
            measures[f"{prefix}_loss"] = loss
            measures[f"{prefix}_accuracy"] = 1 / loss
            measures[f"{prefix}_top5_accuracy"] = 2 / loss
            measures[f"{prefix}_confidence"] = 0.9 / loss
            measures[f"{prefix}_entropy"] = loss
            measures[f"{prefix}_perplexity"] = math.exp(loss)
        measures["eval_calibration"] = calibration_bins()
        measures |= {"heldout_loss": loss + 0.1, "heldout_bits_per_byte": loss / 3}
    return measures


def calibration_bins() -> list[list[float]]:
    """Tokens, sums of confidence and right ones in ten bins; the models are a tenth too sure."""
    tokens = [1000 // (bin_ + 1) for bin_ in range(9)] + [0]
    confidence = [n * (bin_ + 0.5) / 10 for bin_, n in enumerate(tokens)]
    return [tokens, confidence, [round(0.9 * sure) for sure in confidence]]


def training_rows(end: float, values: dict[str, Any], n_rows: int = 104) -> list[dict[str, Any]]:
    """Rows of 2,000 steps whose loss falls from 10 to `end`, reported every 20 steps."""
    a_step = values.get("data.batch_size", 8) * values.get("data.seq_len", 512)
    ends = [1, *range(21, 2001, 20), 500, 1000, 1500, 2000]
    rows: list[dict[str, Any]] = []
    last = 0
    for step in sorted(ends)[:n_rows]:
        loss = end + (10 - end) * math.exp(-step / 300)
        evaluation = (step - 1) % 400 == 0 or step in (500, 1000, 1500, 2000)
        rows.append(row(step, step - last, loss, step * a_step, evaluation))
        last = step
    return rows


def write_grid(folder: Path, *, seeds: int = 1, **experiment: Any) -> Path:
    """The six with the study's own settings, complete."""
    described = {"kind": "grid", "profile": "paper", "versions": {"python": "3.11.7"}}
    run = write_experiment(folder, list(SIX), seeds=seeds, **described | experiment)
    for n, (name, values) in enumerate(SIX.items()):
        for seed in range(seeds):
            rows = training_rows(2 + n / 3 + seed / 20, values)
            trial = write_trial(run, name, rows, seed=seed, result=COMPLETE, values=values)
            write_samples(trial, name)
    return run


def write_samples(trial: Path, text: str) -> None:
    """Samples of the last evaluation before those of an earlier one."""
    prompts = ("The history of", "def main(")
    samples = [
        {"step": step, "prompt": prompt, "continuation": f" {text} <b>at</b> {step} | & \\ {{}}\n"}
        for step in (2000, 1601)
        for prompt in prompts
    ]
    (trial / "samples.json").write_text(json.dumps(samples))


def write_search(
    folder: Path,
    trials: int,
    *,
    objectives: tuple[str, ...] = ("heldout_loss",),
    n_rows: int = 104,
    fresh: bool = False,
) -> Path:
    """A search that begins with the six; every fourth of the others is pruned at a quarter."""
    search = {
        "space": "open-ended", "space_hash": None, "budget": "steps:2000",
        "scheduler": "asha", "seed": 0, "objectives": dict.fromkeys(objectives, "minimize"),
    }  # fmt: skip
    resolved = {name: nested(BASELINE | values) for name, values in SIX.items()}
    run = write_experiment(
        folder, [], kind="search", profile="paper", search=search, resolved=resolved,
        domains=DOMAINS,
    )  # fmt: skip
    rng = random.Random(0)
    for number, (origin, values) in zip(range(trials), points(rng), strict=False):
        pruned = number > 6 and number % 4 == 0
        write_search_trial(run, number, origin, values, 0, n_rows=27 if pruned else n_rows)
    for number in (0, 1, trials - 1) if fresh else ():
        for seed in (1, 2, 3):
            write_search_trial(
                run, number, "sampler" if number > 5 else list(SIX)[number], {}, seed
            )
    return run


def points(rng: random.Random) -> Any:
    """The six, then what a sampler might propose."""
    yield from SIX.items()
    while True:
        width = 64 * rng.randint(2, 12)
        yield (
            "sampler",
            {
                "model.d_model": width,
                "model.d_ff": 4 * width,
                "model.n_layers": rng.randint(4, 24),
                "data.batch_size": 2 * rng.randint(1, 16),
                "optim.learning_rate": 10 ** rng.uniform(-4.5, -2),
                "optim.weight_decay": 10 ** rng.uniform(-3, 0),
                "optim.schedule": rng.choice(DOMAINS["optim.schedule"]),
                "optim.beta1": rng.uniform(0.8, 0.98),
            },
        )


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration as experiment.json has it."""
    config: dict[str, Any] = {"precision": "fp16", "seed": 0}
    for path, value in ({"optim.schedule": "cosine"} | values).items():
        section, _, field = path.partition(".")
        config.setdefault(section, {})[field] = value
    return config


def write_search_trial(
    run: Path, number: int, origin: str, values: dict[str, Any], seed: int, n_rows: int = 104
) -> None:
    """A trial of a search; with fewer rows than a whole one it is pruned."""
    name = f"{number:04d}"
    folder = run / name if not seed else run / "fresh_seeds" / name / f"seed{seed}"
    folder.mkdir(parents=True)
    config = nested(BASELINE | values) | {"seed": seed}
    rate = math.log10(values.get("optim.learning_rate", 3e-4)) + 3
    rows = training_rows(3 + rate**2 + seed / 50, values, n_rows)
    trial = {"key": f"{name}{seed}", "name": name, "seed": seed, "origin": origin}
    trial |= {"data_fingerprint": "f", "config": config}
    pruned = {"status": "PRUNED", "reason": "in the worse half", "diverged": False}
    (folder / "config.json").write_text(json.dumps(trial))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "result.json").write_text(json.dumps(UNTOLD | (COMPLETE if n_rows > 100 else pruned)))
    if not seed:
        write_samples(folder, name)
