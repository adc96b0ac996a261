"""What a report opens with: sentences and a figure, of made-up runs whose results are known."""

from pathlib import Path

import pytest
from made_up import write_grid, write_search

from quarterhour.analysis.chapters.opening import outcome, sentences
from quarterhour.analysis.runs import load_run


def test_a_grid_of_one_seed_says_who_is_best_and_what_cannot_be_told(tmp_path: Path):
    steps, costs, seeds, leak, study = sentences(load_run(write_grid(tmp_path / "grid")))
    assert steps == (
        "At 2000 steps each, baseline is best: held-out loss 2.110 nats, 0.333 below high_lr."
    )
    assert costs.startswith("At 6.144M tokens each, baseline is best: held-out loss 2.1")
    assert "5 of 6 are read off curves in the middle of their schedules. At 61.44T FLOPs" in costs
    assert seeds.startswith("One seed each: whether a difference is more than seed noise cannot")
    assert "--seeds 3" in seeds
    assert "baseline looks best too" in leak
    assert study.startswith("Of the published figures 9 REPRODUCED, 5 DRIFT, 58 FAILED, 36 NOT")


def test_several_seeds_tell_what_is_more_than_noise(tmp_path: Path):
    said = " ".join(sentences(load_run(write_grid(tmp_path / "grid", seeds=3))))
    assert (
        "At equal steps, all 15 pairs differ by more than seed noise (Welch's test, Holm's" in said
    )
    quick = write_grid(tmp_path / "quick", seeds=3, data={"tokenizer": "builtin"})
    said = sentences(load_run(quick))
    assert said[-1] == "Not comparable with the published study: other tokenizer."
    assert 2 <= len(said) <= 6


def test_a_search_says_its_best_against_the_best_of_the_six(tmp_path: Path):
    run = load_run(write_search(tmp_path / "search", 12, fresh=True))
    best, fresh, decides, trials = sentences(run)
    assert best.startswith(
        "The best of 11 complete trials (6 published configurations, 5 proposals), each of 2,000"
        " steps, is 0"
    )
    assert "the same seed gave this figure, which flatters it. Equal steps are not equal" in best
    assert "with up to 3 seeds that had chosen nothing. Means, and differences from" in fresh
    assert "(Welch's intervals, 95 % for all comparisons together (Bonferroni))" in fresh
    assert "The best of the six was itself chosen by one seed" in fresh
    assert "cannot be told from 5 complete proposals: at least 20 are needed" in decides
    assert trials == "Trials: 11 COMPLETE, 1 PRUNED; with fresh seeds 9 COMPLETE."
    assert outcome(run)


@pytest.mark.parametrize("trials", [1, 7])
def test_without_fresh_seeds_the_figure_is_the_history(trials: int, tmp_path: Path):
    run = load_run(write_search(tmp_path / "search", trials))
    said = " ".join(sentences(run))
    assert "cannot be told yet: at its end, a search trains" in said
    figure = outcome(run)
    assert figure
    assert figure.axes[0].get_xlabel() == "trial"
