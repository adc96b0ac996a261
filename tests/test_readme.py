import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_corpus

import quarterhour.data.tokens
import quarterhour.tune.cluster.grid
import quarterhour.tune.cluster.machines
import quarterhour.tune.cluster.searcher
import quarterhour.tune.search.dashboard
import quarterhour.tune.self_test
import quarterhour.tune.tensorboard_server
import quarterhour.tune.training.trial
from quarterhour.tune.cli import main
from quarterhour.tune.experiment import ExperimentRequest, build_experiment
from quarterhour.tune.places import Cluster, plan_resources
from quarterhour.tune.run_folder import Status
from quarterhour.tune.search.settings import SearchRequest, build_search

CLUSTER = Cluster(
    address="auto",
    shared_folder="runs",
    machines=("a", "b"),
    cpus=2,
    gpus=0,
    memory_bytes=8_000_000_000,
)
ENDS_NORMALLY = tuple(f"quarterhour {name}" for name in ("enqueue", "status", "report", "verify"))
ROOT = Path(__file__).parents[1]
FOLDERS = (".", "analysis", "data", "search_spaces", "tests/benchmarks", "tune")
READMES = {folder: (ROOT / folder / "README.md").read_text() for folder in FOLDERS}
COMMANDS = [
    command
    for text in READMES.values()
    for command in re.findall(r"^\$ (.*?)(?: +#.*)?$", text, flags=re.MULTILINE)
]
LM_EVAL = [command for command in COMMANDS if "lm_eval " in command]  # as tests/test_export.py does
RAY = ("ray start --head", "ray start --address=10.0.0.1:6379")  # as tests/test_machines.py does
QUARTERHOUR = sorted({command for command in COMMANDS if command.startswith("quarterhour ")})
SCRIPTS = {command for command in COMMANDS if command.startswith("python tests/")}


class TrainingBeginsError(Exception):
    """All that a user can get wrong is past; or TensorBoard is about to start."""


def training_begins(*_: object, **__: object) -> None:
    raise TrainingBeginsError


def test_the_readmes_name_only_commands_that_are_tested_here():
    make = [command.split()[1] for command in COMMANDS if command.startswith("make ")]
    assert make == ["grid", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}: " in makefile for target in make)
    others = {f"make {target}" for target in make} | {*RAY, *LM_EVAL}
    assert set(COMMANDS) == set(QUARTERHOUR) | SCRIPTS | others


def begin_runs(runs: Path) -> None:
    """A grid and a search, as their commands begin them; two trials of the search are complete."""
    asked: Any = {
        "profile": "quick", "corpus": None, "tokenizer": None, "values": {}, "seeds": (0,),
        "resources": plan_resources(None, None), "name": None, "runs": runs,
    }  # fmt: skip
    grid = build_experiment(ExperimentRequest(kind="grid", protocol="as-run", **asked))
    experiment, search = build_search(
        SearchRequest(
            space="open-ended", budget=None, objective="heldout_loss", scheduler=None, **asked
        )
    )
    with grid.opened(), experiment.opened():
        next(spec for spec in grid.trials() if spec.name == "high_lr").write_config()
        for number in (0, 14):
            search.trial(number, search.baseline, "baseline").write_config()
        for number, name in ((2, "low_lr"), (3, "large_batch")):
            spec = search.trial(number, search.reference[name], name)
            spec.write_config()
            spec.write_result(Status.COMPLETE, {"step": 1, "heldout_loss": 5.0})


@pytest.mark.parametrize("command", QUARTERHOUR)
def test_every_command_of_the_readmes_comes_to_the_point_where_training_begins(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    write_corpus(tmp_path / "corpus.jsonl", documents=550)
    tokenizer = quarterhour.data.tokens.load_tokenizer("builtin")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    shown = READMES["search_spaces"] + READMES["tests/benchmarks"]
    own = re.findall(r"```python\n(.*?)```", shown, flags=re.DOTALL)
    for file in ("my_space.py", "my_grid.py", "my_candidates.py"):
        (tmp_path / file).write_text("".join(own))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", shlex.split(command))
    monkeypatch.setattr("quarterhour.tune.cluster.grid.run_trials", training_begins)
    monkeypatch.setattr("quarterhour.tune.training.trial.Trial.rows", training_begins)
    monkeypatch.setattr("quarterhour.tune.tensorboard_server.serve", training_begins)
    monkeypatch.setattr("quarterhour.tune.cluster.searcher.fit", training_begins)
    monkeypatch.setattr("quarterhour.tune.self_test.run_checks", training_begins)
    monkeypatch.setattr("quarterhour.tune.cluster.machines.inspect_cluster", lambda *_: CLUSTER)
    monkeypatch.setattr("quarterhour.tune.search.dashboard.serve", training_begins)
    monkeypatch.setattr("quarterhour.tune.trained.read_trained", training_begins)
    if "runs/" in command:
        begin_runs(Path("runs"))
    if command.startswith(ENDS_NORMALLY):
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    elif "--gpus-per-trial" in command and not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="2"):
            main()
        assert "this machine has 0 GPUs that torch can use" in capsys.readouterr().err
    else:
        with pytest.raises(TrainingBeginsError):
            main()


@pytest.mark.parametrize("folder", FOLDERS)
def test_scripts_pictures_and_links_are_where_the_readmes_say(folder: str):
    for script in re.findall(r"python (tests/[\w./]+)", READMES[folder]):
        assert (ROOT / script).is_file()
    for path in re.findall(r"\]\(([\w./]+)|src=\"(.*?)\"", READMES[folder]):
        assert (ROOT / folder / "".join(path)).is_file()
