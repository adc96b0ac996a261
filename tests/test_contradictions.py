import json
import shutil
from pathlib import Path

import pytest
from test_published import (
    A_TENTH,
    FROM_ROUNDED_FIGURES,
    TRAINING_BATCH,
    WORDS,
    WRONG_QUOTIENTS,
)

from quarterhour.analysis.chapters.contradictions import KINDS as ORDER
from quarterhour.analysis.chapters.contradictions import contradictions, text_claims
from quarterhour.analysis.chapters.paper import published
from quarterhour.analysis.chapters.paper.published import FOLDER

KINDS = {
    "from rounded figures": FROM_ROUNDED_FIGURES,
    "wrong": WRONG_QUOTIENTS,
    "not measured": WORDS,
    "wrong factor": A_TENTH,
    "another measure": TRAINING_BATCH,
}
NUMBERS = {name: number for number, name in enumerate(published.tables(), start=1)}


def test_each_cell_is_found_with_what_went_wrong():
    found = contradictions([])
    cells = found.loc[found["where"] != "text"]
    for kind, places in KINDS.items():
        of_kind = cells.loc[cells["kind"] == kind]
        numbers = [int(where.split(":")[0].removeprefix("table ")) for where in of_kind["where"]]
        told = set(zip(numbers, of_kind["configuration"], of_kind["column"], strict=True))
        assert told == {(NUMBERS[table], name, column) for table, name, column in places}
    assert len(cells) == sum(map(len, KINDS.values()))


def test_the_gravest_come_first():
    kinds = contradictions([])["kind"].drop_duplicates().to_list()
    assert (kinds[0], kinds[-1]) == ("wrong factor", "from rounded figures")
    assert {*kinds} == {*ORDER}


def test_what_a_cell_equals_is_named():
    found = contradictions([]).set_index(["configuration", "column"])
    assert found.loc[("baseline", "val_accuracy"), "found"].endswith("equals accuracy of table 2")
    assert found.loc[("baseline", "val_accuracy"), "follows"] == 0.322
    assert found.loc[("short_seq", "tokens_per_second"), "found"].startswith("0.1003 times")
    claims = found.loc[("", "small_model_faster_percent")].set_index("published")
    assert claims.loc[39, "found"] == "it is against large_batch, low_lr"
    assert claims.loc[44, "found"] == "it is against high_lr"
    assert claims.loc[39, "follows"] == pytest.approx(35.99, abs=0.01)


@pytest.fixture
def studys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published files, to be changed by a test before they are read."""
    folder = tmp_path / "published"
    shutil.copytree(FOLDER, folder)
    monkeypatch.setattr("quarterhour.analysis.chapters.paper.published.FOLDER", folder)
    return folder


def test_another_paper_has_other_contradictions(studys: Path):
    tables = json.loads((studys / "published_tables.json").read_text())
    tables["performance"]["rows"]["baseline"][0] *= 100
    validation = tables["validation"]["rows"]
    runs = json.loads((studys / "published_runs.json").read_text())["configurations"]
    for name, run in runs.items():
        validation[name][2:] = [round(run["eval_accuracy"][-1], 3), run["eval_perplexity"][-1]]
    (studys / "published_tables.json").write_text(json.dumps(tables))
    found = contradictions([]).set_index(["configuration", "column"])
    assert found.loc[("baseline", "train_loss_last"), "kind"] == "wrong factor"
    assert found.loc[("baseline", "train_loss_last"), "found"].startswith("99.99")
    assert "another measure" not in set(found["kind"])


def test_the_texts_claims_hold_but_for_two_comparisons_and_what_was_not_measured():
    claims = text_claims()
    wrong = claims.loc[~claims["holds"].astype(bool), "claim"].to_list()
    assert wrong == ["small_model_faster_percent", "small_model_faster_percent", "lowest_entropy"]
    assert len(claims) == 12


def test_other_claims_are_judged_as_they_are(studys: Path):
    tables = json.loads((studys / "published_tables.json").read_text())
    claims = {"perplexity_ratio_worst_to_best": 40, "small_model_faster_percent": [36, 1000]}
    tables["text_claims"] |= claims
    (studys / "published_tables.json").write_text(json.dumps(tables))
    changed = text_claims().set_index(["claim", "published"])
    assert not changed.loc[("perplexity_ratio_worst_to_best", 40), "holds"]
    assert changed.loc[("small_model_faster_percent", 36), "holds"]
    nothing = changed.loc[("small_model_faster_percent", 1000), "found"]
    assert nothing == "nothing recorded gives it"
