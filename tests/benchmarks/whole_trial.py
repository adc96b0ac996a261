"""One shortened trial of the paper's baseline, by the grid command's own code and the obvious way.

    .venv/bin/python tests/benchmarks/whole_trial.py [--steps 40]

Both train the same decoder on windows of the built-in corpus, shortened alike, for as many steps,
and measure at the first and the last on the training batch and one of validation: of 40 steps,
a tenth (the study: 126 batches of 2,000 steps). Ours is what the grid
command runs: a trial under Ray Tune with its rows, events, samples, checkpoint and held-out losses,
on all cores, in the best precision of this CPU. The obvious way is a DataLoader over windows, fp32
eager, all logits at once, one `.item()` a step, and top-5 accuracy token by token, without the
held-out losses. Each runs in a process of its own; prints seconds of both and their ratio.
"""

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from peers import PlainDecoder, PlainTrainer, plain_loss
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, random_split

from quarterhour.data.corpora import load_documents
from quarterhour.data.tokens import TokenData
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.search_spaces.profiles import PAPER
from quarterhour.tune.cluster.grid import run_trials
from quarterhour.tune.experiment import Experiment, ExperimentRequest, build_experiment
from quarterhour.tune.ledger import prepare_trials
from quarterhour.tune.machine import best_precision
from quarterhour.tune.places import plan_resources
from quarterhour.tune.progress import TrialsProgress
from quarterhour.tune.run_folder import CONFIG, RESULT
from quarterhour.tune.run_reader import read_rows

DOCUMENTS = 550  # of 2,000 steps: 500 to train on and 50 held out
LEAST_DOCUMENTS = 11  # of which one is held out


class Windows(Dataset[Tensor]):
    """All windows of seq_len + 1 tokens at stride 1."""

    def __init__(self, tokens: TokenData, seq_len: int) -> None:
        self.tokens = torch.from_numpy(tokens.train.astype("int64"))
        self.seq_len = seq_len

    def __len__(self) -> int:
        return len(self.tokens) - self.seq_len

    def __getitem__(self, start: int) -> Tensor:
        return self.tokens[start : start + self.seq_len + 1]


@torch.no_grad()
def plain_metrics(model: PlainDecoder, batch_BT: Tensor) -> dict[str, float]:
    """The study's measures of a batch [B, T + 1], top-5 token by token."""
    logits_NV = model(batch_BT[:, :-1]).flatten(0, 1)
    targets_N = batch_BT[:, 1:].flatten()
    p_NV = logits_NV.softmax(-1)
    hits = 0
    for logits_V, target in zip(logits_NV, targets_N, strict=True):
        hits += int(target in logits_V.topk(5).indices)
    return {
        "loss": F.cross_entropy(logits_NV, targets_N).item(),
        "accuracy": (logits_NV.argmax(-1) == targets_N).float().mean().item(),
        "confidence": p_NV.max(-1).values.mean().item(),
        "entropy": -(p_NV * (p_NV + 1e-9).log()).sum(-1).mean().item(),
        "top5_accuracy": hits / len(targets_N),
    }


def train_plainly(folder: Path, config: TrialConfig) -> dict[str, float]:
    """The obvious loop; its seconds, and those of its evaluations in them."""
    begin = time.perf_counter()
    windows = Windows(TokenData(folder), config.data.seq_len)
    n_validation = len(windows) // 10
    training, validation = random_split(windows, [len(windows) - n_validation, n_validation])
    batches = iter(DataLoader(training, config.data.batch_size, shuffle=True))
    trainer = PlainTrainer(PlainDecoder(config.model), plain_loss, config.optim, None)
    losses: list[float] = []
    eval_seconds = 0.0
    for updates in range(1, config.budget.steps + 1):
        batch = next(batches)
        evaluates = config.budget.evaluates_at(updates)
        if evaluates:
            eval_begin = time.perf_counter()
            plain_metrics(trainer.model, batch)
            eval_seconds += time.perf_counter() - eval_begin
        losses.append(trainer.train_step(batch).item())
        if evaluates:
            eval_begin = time.perf_counter()
            leaky = iter(DataLoader(validation, config.data.batch_size))
            for _ in range(config.budget.eval_batches):
                plain_metrics(trainer.model, next(leaky))
            eval_seconds += time.perf_counter() - eval_begin
    return {"seconds": time.perf_counter() - begin, "eval_seconds": eval_seconds}


def build(folder: Path, steps: int) -> Experiment:
    """The shortened trial, its corpus and number of evaluations shortened alike."""
    shortened = round(DOCUMENTS * steps / PAPER.baseline.budget.steps)
    documents = load_documents("builtin", max(LEAST_DOCUMENTS, shortened))
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    request = ExperimentRequest(
        kind="grid", profile="paper", protocol="as-run", corpus=str(corpus), tokenizer="builtin",
        chosen=("baseline",), seeds=(0,), name="run", runs=folder,
        resources=plan_resources(os.cpu_count(), 0),
        values={
            "model.vocab_size": PAPER.baseline.model.vocab_size,
            "precision": best_precision("cpu"),
            "budget.steps": steps,
            "budget.report_every": steps,
            "budget.eval_every": steps,
            "budget.eval_batches": 1,
        },
    )  # fmt: skip
    return build_experiment(request)


def train_as_the_grid_does(experiment: Experiment) -> float:
    """Seconds of the trial under Ray Tune, with Ray's start and end."""
    begin = time.perf_counter()
    with experiment.opened():
        todo = prepare_trials(experiment.trials(), experiment.folder.parent)
        with TrialsProgress(Console(), todo, 0) as progress:
            run_trials(todo, experiment.tokens, experiment.resources, progress)
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as name:
        experiment = build(Path(name), steps)
        (spec,) = experiment.trials()
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            plain = pool.submit(train_plainly, experiment.tokens.folder, spec.config).result()
        ours = train_as_the_grid_does(experiment)
        rows = read_rows(spec.folder)
        ends = [(spec.folder / name).stat().st_mtime for name in (CONFIG, RESULT)]
    trial = ends[1] - ends[0]
    steps_seconds = plain["seconds"] - plain["eval_seconds"]
    lines = [
        ("ours", ours, trial, rows[-1]["seconds"]),
        ("the obvious way", plain["seconds"], plain["seconds"], steps_seconds),
    ]
    print(f"{steps} steps, 2 evaluations of 1 + 1 batches, {torch.get_num_threads()} threads")
    print(f"{'':<18}{'with Ray s':>12}{'trial s':>10}{'its steps s':>13}{'a step s':>10}")
    for who, whole, alone, in_steps in lines:
        print(f"{who:<18}{whole:>12.1f}{alone:>10.1f}{in_steps:>13.1f}{in_steps / steps:>10.2f}")
    whole_ratio, ratio = plain["seconds"] / ours, plain["seconds"] / trial
    print(f"the obvious way takes {ratio:.1f} times as long, {whole_ratio:.1f} with Ray's start")


if __name__ == "__main__":
    main()
