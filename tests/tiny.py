"""Trials that take a second: a small corpus of made-up words and a small decoder on it."""

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from quarterhour.data.batches import BatchConfig
from quarterhour.data.tokens import DataConfig, TokenData, prepare_tokens
from quarterhour.model.decoder import DecoderConfig
from quarterhour.model.optim import OptimConfig
from quarterhour.search_spaces.point import BudgetConfig, TrialConfig
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.run_folder import COLUMNS, Row
from quarterhour.tune.run_reader import read_rows
from quarterhour.tune.training.trial import Trial

CPU = torch.device("cpu")
CLOCK_AND_MACHINE = {name for name, column in COLUMNS.items() if column.of_machine}


def write_corpus(path: Path, documents: int = 110) -> Path:
    """A jsonl corpus of random words, always the same."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=4)) for _ in range(60)]
    texts = [" ".join(rng.choices(words, k=40)) for _ in range(documents)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def tiny_tokens(folder: Path) -> TokenData:
    """Tokens of that corpus by the built-in tokenizer."""
    corpus = write_corpus(folder / "tiny.jsonl")
    return prepare_tokens(DataConfig(corpus=str(corpus), tokenizer="builtin"))


def tiny_config(**values: Any) -> TrialConfig:
    """Twenty steps of a decoder of two layers, with `section__field=value` put in."""
    config = TrialConfig(
        model=DecoderConfig(vocab_size=8_192, d_model=16, n_heads=2, n_layers=2, d_ff=32),
        optim=OptimConfig(learning_rate=3e-3),
        data=BatchConfig(batch_size=4, seq_len=16),
        budget=BudgetConfig(steps=20, report_every=2, eval_every=4, eval_batches=2),
        precision="fp32",
    )
    return config.with_values({path.replace("__", "."): value for path, value in values.items()})


def tiny_spec(folder: Path, tokens: TokenData, name: str = "tiny", **values: Any) -> TrialSpec:
    """A trial of that configuration in `folder`/name/seed."""
    config = tiny_config(**values)
    return TrialSpec(
        name=name,
        config=config,
        data_fingerprint=tokens.manifest.fingerprint,
        folder=folder / name / f"seed{config.seed}",
    )


def train(
    spec: TrialSpec,
    tokens: TokenData,
    rows: int | None = None,
    device: torch.device = CPU,
) -> None:
    """Train a trial in this process, to its end or until it has reported so many rows."""
    reported = Trial(spec, tokens, device).rows()
    for number, _ in enumerate(reported, start=1):
        if number == rows:
            reported.close()


def exact_rows(folder: Path) -> list[Row]:
    """A trial's rows without what a clock or the machine's state decides."""
    return [
        {name: value for name, value in row.items() if name not in CLOCK_AND_MACHINE}
        for row in read_rows(folder)
    ]


def write_spec(path: Path, spec: TrialSpec, tokens: TokenData) -> None:
    """What `train_tiny.py` needs to train `spec` in a process of its own."""
    fields = {"name": spec.name, "config": asdict(spec.config), "folder": str(spec.folder)}
    path.write_text(json.dumps(fields | {"tokens": str(tokens.folder)}))
