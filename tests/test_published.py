from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_runs import COMPLETE, write_experiment, write_trial

from quarterhour.analysis.chapters.paper import published
from quarterhour.analysis.chapters.paper.comparison import TABLE_COLUMNS
from quarterhour.analysis.chapters.paper.published import (
    differences,
)
from quarterhour.analysis.chapters.paper.tables import TABLES
from quarterhour.analysis.measures import mean_over_seeds, summarise
from quarterhour.analysis.runs import load_run
from quarterhour.model.decoder import EXPERTS, DecoderConfig
from quarterhour.model.optim import OptimConfig

# Cells of the paper that its own recorded data do not give, by what went wrong in the paper.
FROM_ROUNDED_FIGURES = [
    ("top5", "low_lr", "improvement"),
    ("top5", "baseline", "top1_gap"),
    ("top5", "short_seq", "top1_gap"),
    ("top5", "small_model", "top1_gap"),
    ("top5", "low_lr", "top1_gap"),
]
WRONG_QUOTIENTS = [
    ("normalized", "large_batch", "loss_per_million_tokens"),
    ("normalized", "short_seq", "loss_per_million_tokens"),
    ("normalized", "low_lr", "loss_per_million_tokens"),
]
WORDS = [
    ("sequence_length", "short_seq", "memory_usage"),
    ("sequence_length", "baseline", "memory_usage"),
]
A_TENTH = [
    ("sequence_length", "short_seq", "tokens_per_second"),
    ("sequence_length", "baseline", "tokens_per_second"),
]
TRAINING_BATCH = [
    ("validation", "large_batch", "val_accuracy"),
    ("validation", "high_lr", "val_accuracy"),
    ("validation", "baseline", "val_accuracy"),
    ("validation", "short_seq", "val_accuracy"),
    ("validation", "small_model", "val_accuracy"),
    ("validation", "low_lr", "val_accuracy"),
    ("validation", "large_batch", "val_perplexity"),
    ("validation", "high_lr", "val_perplexity"),
    ("validation", "baseline", "val_perplexity"),
    ("validation", "short_seq", "val_perplexity"),
    ("validation", "small_model", "val_perplexity"),
    ("validation", "low_lr", "val_perplexity"),
]


def printed(figure: float | str, column: str) -> str:
    return figure if isinstance(figure, str) else format(figure, TABLE_COLUMNS[column].decimals)


def not_following(summary: pd.DataFrame) -> set[tuple[str, str, str]]:
    return {
        (name, str(configuration), column)
        for name, table in published.tables().items()
        for configuration in table.index
        for column in table
        if printed(TABLES[name][1](mean_over_seeds(summary)).at[configuration, column], column)
        != printed(table.at[configuration, column], column)
    }


def test_the_eight_tables_follow_from_the_recorded_data_except_for_the_papers_errors():
    assert list(TABLES) == list(published.tables())
    errors = [*FROM_ROUNDED_FIGURES, *WRONG_QUOTIENTS, *WORDS, *A_TENTH, *TRAINING_BATCH]
    assert not_following(published.summary()) == set(errors)


def test_rows_come_in_the_papers_order_where_it_ranks():
    for name in ("performance", "top5", "efficiency", "validation"):
        ours = TABLES[name][1](mean_over_seeds(published.summary()))
        assert list(ours.index) == list(published.tables()[name].index)


def test_published_top5_differences_are_of_rounded_figures():
    table, accuracy = published.tables()["top5"], published.tables()["performance"]["accuracy"]
    improvement = table["final_top5"] - table["initial_top5"]
    assert improvement["low_lr"] == pytest.approx(table.at["low_lr", "improvement"])
    gap = table["final_top5"] - accuracy
    for _, configuration, column in FROM_ROUNDED_FIGURES[1:]:
        assert gap[configuration] == pytest.approx(table.at[configuration, column])


def test_published_quotients_follow_from_no_rounding_of_loss_and_tokens():
    table = published.tables()["normalized"]
    exact = published.summary().set_index("configuration")["total_tokens"] / 1e6
    for _, configuration, column in WRONG_QUOTIENTS:
        loss, quotient = table.at[configuration, "train_loss_last"], table.at[configuration, column]
        for tokens in (table.at[configuration, "tokens_millions"], exact[configuration]):
            assert round(loss / tokens, 4) != quotient


def test_published_tokens_per_second_are_about_a_tenth():
    ours = TABLES["sequence_length"][1](mean_over_seeds(published.summary()))["tokens_per_second"]
    ratio = published.tables()["sequence_length"]["tokens_per_second"] / ours
    assert ratio.between(0.099, 0.102).all()


def test_published_validation_accuracy_and_perplexity_are_the_training_batchs():
    summary = published.summary()
    mistaken = summary.assign(
        val_accuracy=summary["accuracy"], val_perplexity=summary["perplexity"]
    )
    assert not not_following(mistaken) & set(TRAINING_BATCH)


def test_correlations_and_convergence_of_the_text():
    summary = published.summary().set_index("configuration")
    confidence = summary["confidence"]
    assert round(np.corrcoef(summary["train_loss_last"], confidence)[0, 1], 3) == -0.943
    assert round(np.corrcoef(summary["final_top5"], confidence)[0, 1], 3) == 0.993
    convergence = 1 - summary["late_loss"] / summary["early_loss"]
    claimed = {"large_batch": 0.734, "high_lr": 0.55, "low_lr": 0.256}
    assert convergence[list(claimed)].round(3).to_dict() == claimed


def test_the_published_summary_has_the_columns_of_a_runs(tmp_path: Path):
    run = load_run(write_experiment(tmp_path / "run", ["baseline"]))
    assert list(published.summary().columns) == list(summarise(run).columns)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, None),
        ({"model.d_model": 96, "model.d_ff": 384}, "model size: d_model 96 instead of 384"),
        ({"model.d_ff": 1024}, "model size: d_ff 1024 instead of 1536"),
        ({"model.positions": "rope"}, "positions rope instead of none"),
        ({"model.feed_forward": "moe"}, "feed_forward moe instead of silu"),
        ({"model.heads_per_kv": 2}, "heads_per_kv 2 instead of 1"),
        ({"optim.optimizer": "muon"}, "optimizer muon instead of adamw"),
        ({"optim.learning_rate": 1e-3}, "learning_rate 0.001 instead of 0.0003"),
        ({"precision": "bf16"}, "precision bf16 instead of fp16"),
        ({"data.seq_len": 128}, "seq_len 128 instead of 512"),
        ({"budget.steps": 1000, "budget.eval_every": 200}, "1,000 steps instead of 2,000"),
        ({"budget.max_steps": 3}, "stopped after 3 of 2,000 steps"),
        (
            {"budget.eval_every": 100},
            "last evaluated after 95% of the steps instead of 80%",
        ),
    ],
)
def test_differences_of_a_trial(tmp_path: Path, values: dict[str, Any], reason: str | None):
    run = write_experiment(tmp_path / "run", ["baseline", "high_lr"])
    write_trial(run, "baseline", [], result=COMPLETE, values=values)
    assert list(differences(load_run(run)).values()) == ([reason] if reason else [])
    assert not differences(load_run(run), "high_lr")


def test_every_part_that_changes_a_trial_makes_it_another_than_the_studys():
    of_another = {"window", "full_every", *EXPERTS, "balance_loss", "ema_decay"}
    of_another |= {"muon_learning_rate", "muon_momentum"}
    chosen = {
        f"{section}.{part.name}": part.default
        for section, kind in (("model", DecoderConfig), ("optim", OptimConfig))
        for part in fields(kind)
        if part.metadata.get("choice") and part.name not in of_another
    }
    assert chosen == published._PARTS  # pyright: ignore[reportPrivateUsage]


def test_differences_of_a_run(tmp_path: Path):
    data = {"corpus": "builtin", "tokenizer": "builtin", "train_documents": 480}
    run = write_experiment(tmp_path / "run", [], data=data, protocol="as-described")
    described = {"model.positions": "rope", "optim.beta2": 0.95, "optim.warmup_fraction": 0.1}
    write_trial(run, "baseline", [], values=described)
    write_trial(run, "my-own", [], values={"model.d_model": 64})
    assert differences(load_run(run)) == {
        "corpus": "corpus builtin instead of HuggingFaceTB/smollm-corpus:cosmopedia-v2",
        "tokenizer": "tokenizer builtin instead of HuggingFaceTB/SmolLM-135M",
        "train_documents": "train_documents 480 instead of 500",
        "protocol": "protocol as-described instead of as-run",
    }


def test_a_kind_of_difference_is_told_once(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline", "small_model"])
    small = {"model.n_heads": 4, "model.n_layers": 8, "data.batch_size": 12}
    write_trial(run, "baseline", [], values={"model.d_model": 96})
    write_trial(run, "small_model", [], values={"model.d_model": 64} | small)
    both, small_only = differences(load_run(run)), differences(load_run(run), "small_model")
    assert both == {"model size": "model size: d_model 96 instead of 384"}
    assert small_only == {"model size": "model size: d_model 64 instead of 256"}
