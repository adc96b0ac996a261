from dataclasses import replace
from pathlib import Path

from made_up import write_search

from quarterhour.analysis.chapters.search.results import search_results, seed_comparison
from quarterhour.analysis.runs import load_run


def test_one_fresh_seed_judges_nothing(tmp_path: Path):
    results = search_results(load_run(write_search(tmp_path / "run", 8, fresh=True)))
    alone = replace(results, fresh=results.fresh.loc[results.fresh["seed"] == 1])
    compared = seed_comparison(alone).dropna(subset=["difference"])
    assert len(compared)
    assert set(compared["verdict"]) == {"one seed: cannot be judged"}
    assert compared["low"].isna().all()
