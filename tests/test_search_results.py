from dataclasses import replace
from pathlib import Path

import pandas as pd
from made_up import write_search

from quarterhour.analysis.chapters.run import provenance
from quarterhour.analysis.chapters.search.results import search_results, seed_comparison
from quarterhour.analysis.runs import load_run


def test_one_fresh_seed_judges_nothing(tmp_path: Path):
    results = search_results(load_run(write_search(tmp_path / "run", 8, fresh=True)))
    alone = replace(results, fresh=results.fresh.loc[results.fresh["seed"] == 1])
    compared = seed_comparison(alone).dropna(subset=["difference"])
    assert len(compared)
    assert set(compared["verdict"]) == {"one seed: cannot be judged"}
    assert compared["low"].isna().all()


def test_what_only_the_interval_of_its_own_pair_tells_from_noise_is_borderline(tmp_path: Path):
    results = search_results(load_run(write_search(tmp_path / "run", 8, fresh=True)))
    of_six = str(results.best_of_reference()["configuration"])  # pyright: ignore
    # Of three seeds 0.1 apart: Welch's interval of a pair is ± 0.227, that of all three ± 0.323.
    less = {of_six: 0.0, "0006": -0.1, "0007": -0.28, "0008": -0.5}
    rows = [
        {"configuration": name, "status": "COMPLETE", results.objective: 4 + off + 0.1 * seed}
        for name, off in less.items()
        for seed in range(3)
    ]
    compared = seed_comparison(replace(results, fresh=pd.DataFrame(rows))).set_index("trial")
    verdicts = compared["verdict"].dropna().to_dict()
    assert verdicts == {"0006": "within seed noise", "0007": "borderline", "0008": "better"}


def test_the_speed_of_a_trial_is_the_median_of_its_windows(tmp_path: Path):
    objectives = ("tokens_per_second", "heldout_loss")
    run = load_run(write_search(tmp_path / "run", 3, objectives=objectives))
    run.rows["tokens_per_second"] = run.rows.groupby("configuration").cumcount() ** 2.0
    shown = search_results(run).searched.set_index("configuration")
    assert list(shown["tokens_per_second"]) == [(51**2 + 52**2) / 2] * 3
    assert list(shown["step"]) == [2000] * 3
    assert shown["heldout_loss"].notna().all()


def test_counts_say_that_fresh_seeds_are_among_them(tmp_path: Path):
    with_fresh = load_run(write_search(tmp_path / "run", 8, fresh=True))
    facts = provenance(with_fresh)["value"]
    assert facts["trials"] == "8 COMPLETE; with fresh seeds 9 COMPLETE"
    assert "space hash" not in facts
    without = load_run(write_search(tmp_path / "without", 8))
    assert provenance(without)["value"]["trials"] == "8 COMPLETE"
