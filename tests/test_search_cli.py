import json
from pathlib import Path

import pytest
from filelock import FileLock
from test_cli import Quarterhour, quarterhour  # noqa: F401
from tiny import write_corpus

from search_spaces.profiles import QUICK
from tune.experiment import LOCK, OWNER

SEARCH = "search --corpus tiny.jsonl --budget steps:8"

BAD_INPUT = [
    ("search --trials 0", "--trials is 0: it must be at least 1"),
    ("search --hours 0", "--hours is 0.0: it must be above 0"),
    ("search --profile huge", "unknown profile 'huge'"),
    ("search --objective loss", "unknown objective 'loss': use one of heldout_loss,"),
    ("search --objective eval_loss,eval_loss", "it names a measure twice"),
    ("search --scheduler pbt", "unknown scheduler 'pbt': use asha or none"),
    ("search --scheduler asha --objective heldout_loss,seconds", "--scheduler asha stops trials"),
    ("search --budget steps", "--budget is 'steps'"),
    ("search --budget hours:3", "--budget is 'hours:3'"),
    ("search --budget steps:3", "it must be at least 4; give more"),
    ("search --space wide", "unknown space 'wide': use open-ended or FILE.py:NAME"),
    ("search --space none.py:space", "there is no file none.py"),
    ("search --space empty.py:space", "empty.py has no function space"),
    ("search --seed -1", "seed is -1"),
    ("search --name a/b", "--name is 'a/b'"),
    ("search --from nowhere", "--from nowhere: it is no run folder"),
    ("search --from runs/other", "--from runs/other: it was trained on data with fingerprint 00"),
    ("search --from runs/damaged", "runs/damaged/experiment.json is damaged"),
    ("enqueue runs/none optim.learning_rate=1e-3", "runs/none is no search"),
    ("enqueue runs/other optim.learning_rate=1e-3", "runs/other is no search"),
    ("enqueue runs/damaged optim.learning_rate=1e-3", "runs/damaged/experiment.json is damaged"),
    ("status runs/none", "run folder runs/none does not exist"),
    ("status runs/other", "runs/other has no trial yet"),
    ("dashboard runs/none", "runs/none is no search"),
]


@pytest.mark.parametrize(("command", "message"), BAD_INPUT)
def test_bad_input_ends_in_one_line_and_exit_code_2(
    command: str,
    message: str,
    quarterhour: Quarterhour,  # noqa: F811
    tmp_path: Path,
):
    write_corpus(tmp_path / "tiny.jsonl")
    (tmp_path / "empty.py").write_text("")
    for name, text in {"other": json.dumps(OTHER), "damaged": '{"name": '}.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "experiment.json").write_text(text)
    corpus = ["--corpus", "tiny.jsonl"] if command.startswith("search") else []
    code, _, errors = quarterhour(*command.split(), *corpus)
    assert code == 2
    assert message in errors
    assert errors.startswith("quarterhour: ")
    assert len(errors.splitlines()) == 1
    assert not list(tmp_path.rglob("metrics.jsonl"))


OTHER = {
    "kind": "grid",
    "search": None,
    "data": {"fingerprint": "00"},
    "configurations": [],
    "seeds": [0],
    "resolved": {"baseline": {"budget": {"steps": QUICK.baseline.budget.steps}}},
}


def test_a_second_search_on_a_run_is_refused_with_the_process_of_the_first(
    quarterhour: Quarterhour,  # noqa: F811
    tmp_path: Path,
):
    write_corpus(tmp_path / "tiny.jsonl")
    run = tmp_path / "runs/mine"
    run.mkdir(parents=True)
    with FileLock(run / LOCK):
        (run / OWNER).write_text("4711")
        code, _, errors = quarterhour(*SEARCH.split(), "--name", "mine")
    assert code == 2
    assert "runs/mine is in use by quarterhour process 4711" in errors
