import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quarterhour.analysis.runs import load_run
from quarterhour.search_spaces.reference import SIX
from quarterhour.tune.cli import main
from quarterhour.tune.ledger import read_result, read_spec
from quarterhour.tune.run_folder import EXPERIMENT, METRICS, RESULT
from quarterhour.tune.run_reader import read_rows, trial_folders

OLD = Path(__file__).parent / "data/run_of_version_0.1"
# The README there has the commands.
OPTIONS = "--corpus corpus.jsonl --tokenizer tokenizer.json --precision fp32"
GRID = f"grid {OPTIONS} --max-steps 12"
SEARCH = f"search {OPTIONS} --budget steps:8 --name search"
INTERRUPTED = (
    "run baseline --set model.d_model=8 --set model.n_heads=2 --set model.n_layers=1"
    " --set model.d_ff=16 --set data.batch_size=4 --set data.seq_len=32"
    f" {OPTIONS} --max-steps 30 --name interrupted"
)
ENDED = 6 + 8 + 9  # of the grid, of the search, of its best with fresh seeds

Quarterhour = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The old run folders, copied, in the working directory."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs")


@pytest.fixture
def quarterhour(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Quarterhour:
    """A command as a user types it, beside these folders: exit code, output, errors."""

    def call(command: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["quarterhour", *command.split()])
        with pytest.raises(SystemExit) as ended:
            main()
        output, errors = capfd.readouterr()
        return int(ended.value.code or 0), " ".join(output.split()), errors

    return call


def trained(runs: Path) -> dict[Path, tuple[bytes, bytes]]:
    """Rows and result of every trial that has ended."""
    return {
        path.parent: (path.with_name(METRICS).read_bytes(), path.read_bytes())
        for path in runs.rglob(RESULT)
    }


def test_a_trial_has_the_key_that_it_had(runs: Path):
    folders = trial_folders(runs)
    assert len(folders) == ENDED + 1
    for folder in folders:
        spec = read_spec(folder)
        assert spec.key == json.loads((folder / "config.json").read_text())["key"]
        result = read_result(folder)
        assert result is None or result.key == spec.key


@pytest.mark.parametrize("command", [f"{GRID} --name grid", f"{SEARCH} --trials 8"])
def test_the_same_command_trains_nothing(command: str, quarterhour: Quarterhour, runs: Path):
    before = trained(runs)
    code, _, errors = quarterhour(command)
    assert (code, errors) == (0, "")
    assert trained(runs) == before
    assert len(before) == ENDED


def test_another_grid_adopts_all_six(quarterhour: Quarterhour, runs: Path):
    code, output, errors = quarterhour(f"{GRID} --name again")
    assert (code, errors) == (0, "")
    assert "6 trials, 6 of them finished before" in output
    for name in SIX:
        old, new = (runs / run / name / "seed0" for run in ("grid", "again"))
        assert json.loads((new / RESULT).read_text())["adopted_from"] == str(old)
        assert (new / METRICS).read_bytes() == (old / METRICS).read_bytes()


def test_an_interrupted_trial_goes_on_from_its_checkpoint(quarterhour: Quarterhour, runs: Path):
    metrics = runs / "interrupted/baseline/seed0" / METRICS
    kept = metrics.read_bytes().splitlines()[:3]  # the checkpoint is of the third row
    code, _, errors = quarterhour(INTERRUPTED)
    assert (code, errors) == (0, "")
    assert metrics.read_bytes().splitlines()[:3] == kept  # trained again, they had other times
    assert read_rows(metrics.parent)[-1]["step"] == 30


@pytest.mark.slow
def test_a_search_goes_on_from_its_trials(quarterhour: Quarterhour, runs: Path):
    before = trained(runs)
    command = [str(Path(sys.executable).with_name("quarterhour")), *SEARCH.split()]
    subprocess.run([*command, "--trials", "9"], check=True, stdout=subprocess.DEVNULL)
    after = trained(runs)
    assert after.items() > before.items()
    searched = [path for path in after if path.parent == runs / "search"]
    assert sorted(path.name for path in searched) == [f"{number:04d}" for number in range(9)]


def test_everything_that_reads_a_run_reads_it(quarterhour: Quarterhour, runs: Path):
    grid, search, interrupted = (load_run(runs / n) for n in ("grid", "search", "interrupted"))
    assert list(grid.trials["configuration"]) == list(SIX)
    assert set(grid.trials["status"]) == {"COMPLETE"}
    assert list(search.trials["status"]).count("PRUNED") == 1
    assert list(interrupted.trials["steps_done"]) == [10]
    code, output, errors = quarterhour("status runs/search")
    assert (code, errors) == (0, "")
    assert "COMPLETE 7 PRUNED 1" in output
    code, output, errors = quarterhour("verify runs/grid")
    assert (code, errors) == (0, "")
    assert "settings:" in output


@pytest.mark.slow
def test_a_report_is_written_of_it(quarterhour: Quarterhour):
    code, output, errors = quarterhour("report runs/grid runs/search runs/interrupted")
    assert (code, errors) == (0, "")
    assert output == "report in runs/grid/report/report.html"


@pytest.mark.parametrize(
    "command",
    [
        f"{GRID} --name grid",
        f"{GRID} --name interrupted",
        f"{SEARCH} --trials 9",
        f"search {OPTIONS} --from runs/search",
        "enqueue runs/search optim.learning_rate=2e-3",
        "status runs/search",
        "report runs/grid",
        "verify runs/grid",
    ],
)
def test_a_folder_of_a_newer_version_is_refused(command: str, quarterhour: Quarterhour, runs: Path):
    for path in runs.glob(f"*/{EXPERIMENT}"):
        newer = json.loads(path.read_text()) | {"format": 2}
        path.write_text(json.dumps(newer))
    before = sorted(runs.rglob("[!.]*"))
    code, _, errors = quarterhour(command)
    assert code == 2
    assert "has format 2 of a run folder" in errors
    assert errors.startswith("quarterhour: ")
    assert len(errors.splitlines()) == 1
    assert sorted(runs.rglob("[!.]*")) == before  # but for a lock and its owner
