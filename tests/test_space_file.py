"""Spaces that users write: what is drawn from them is found again, and whose code runs."""

import json
import shutil
import sys
from pathlib import Path

import optuna
import pytest
from searches import Driver, optuna_trials, statuses, tiny_search
from test_search_cli import make_search
from tiny import write_corpus

from quarterhour.data.files import cache_folder
from quarterhour.search_spaces.open_ended import draw, load_space, locate
from quarterhour.search_spaces.profiles import QUICK
from quarterhour.search_spaces.reference import reference_configurations
from quarterhour.search_spaces.space_file import Space
from quarterhour.tune.search.settings import read_search

RATE = "'optim.learning_rate': trial.suggest_float('optim.learning_rate', 1e-4, 1e-2, log=True)"
# What Optuna or the space itself warns of, and Optuna takes.
WARNING = {
    "step": "{'data.batch_size': trial.suggest_int('data.batch_size', 4, 17, step=4)}",
    "float_step": "{'optim.beta1': trial.suggest_float('optim.beta1', 0.8, 0.97, step=0.05)}",
    "discrete": "{'optim.beta1': trial.suggest_discrete_uniform('optim.beta1', 0.8, 0.9, 0.1)}",
    "log": "{'optim.learning_rate': trial.suggest_loguniform('optim.learning_rate', 1e-4, 1e-2)}",
    "twice": "[trial.suggest_int('model.n_layers', 1, 6),"
    " {'model.n_layers': trial.suggest_int('model.n_layers', 4, 9)}][1]",
    "own": "[warnings.warn('old'), {" + RATE + "}][1]",
}
NUMPY = {
    "ints": "{'data.batch_size': trial.suggest_categorical('data.batch_size',"
    " list(np.array([4, 8, 16])))}",
    "array": "{'data.batch_size': trial.suggest_categorical('data.batch_size',"
    " np.array([4, 8, 16]))}",
    "converted": "{'data.batch_size': int(trial.suggest_categorical('data.batch_size',"
    " list(np.array([4, 8, 16]))))}",
    "texts": "{'optim.schedule': trial.suggest_categorical('optim.schedule',"
    " list(np.array(['cosine', 'linear'])))}",
    "float32": "{'optim.beta1': trial.suggest_categorical('optim.beta1',"
    " list(np.array([0.8, 0.9], dtype=np.float32)))}",
    "bounds": "{'model.n_layers': trial.suggest_int('model.n_layers', *np.array([2, 5])),"
    " 'optim.beta1': np.float64(0.85), 'model.d_ff': np.int32(96)}",
}
# The point is another one when it is looked up.
NOT_FOUND_AGAIN = {
    "random": "{" + RATE + ", 'optim.beta1': random.uniform(0.8, 0.9)}",
    "number": "{" + RATE + ", 'model.n_layers': 1 + trial.number}",
    "counted": "{" + RATE + ", 'optim.beta2': 0.9 + next(count) / 1e6}",
}


def write_space(folder: Path, text: str) -> str:
    imports = "import itertools, random, warnings\nimport numpy as np\ncount = itertools.count()\n"
    path = folder / "own.py"
    path.write_text(f"{imports}def space(trial):\n    return {text}\n")
    return f"{path}:space"


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("text", [*WARNING.values(), *NUMPY.values()], ids=[*WARNING, *NUMPY])
def test_what_a_space_draws_is_found_again_in_silence_and_the_search_goes_on(
    text: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
):
    space = load_space(write_space(tmp_path, text), QUICK)
    assert bool(len(recwarn)) == (text in WARNING.values())
    recwarn.clear()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(30):
        trial = study.ask()
        config = draw(space, QUICK.baseline, trial)
        assert locate(space, QUICK.baseline, config).params == trial.params
    search = tiny_search(tmp_path, space=space)
    Driver(search, trials=3, first_points=[]).run()
    drawn = optuna_trials(search)
    Driver(search, trials=5, first_points=[]).run()
    assert statuses(search) == ["COMPLETE"] * 5
    assert [t.params for t in optuna_trials(search)[:3]] == [t.params for t in drawn]
    assert [*recwarn] == []


@pytest.mark.filterwarnings("ignore")
def test_the_six_lie_in_a_range_as_optuna_adjusts_it(tmp_path: Path):
    space = load_space(write_space(tmp_path, WARNING["step"]), QUICK)
    six = reference_configurations(QUICK, "as-run")
    search = tiny_search(tmp_path, space=space, reference=six)
    assert search.why_outside(six["baseline"]) is None
    assert "optim.learning_rate is" in str(search.why_outside(six["high_lr"]))
    assert "data.batch_size" in str(
        search.why_outside(six["baseline"].with_values({"data.batch_size": 17}))
    )


@pytest.mark.parametrize("text", NOT_FOUND_AGAIN.values(), ids=NOT_FOUND_AGAIN)
def test_a_space_that_does_not_find_its_points_again_is_refused_with_the_reason(
    text: str, tmp_path: Path
):
    space = load_space(write_space(tmp_path, text), QUICK)
    study = optuna.create_study()
    study.ask()
    with pytest.raises(ValueError, match="for given the same values the space has another") as told:
        draw(space, QUICK.baseline, study.ask())
    assert "outside the search space: " in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def betas(low: float, high: float) -> Space:
    """The range of one number."""
    return lambda trial: {"optim.beta1": trial.suggest_float("optim.beta1", low, high)}


def test_a_space_that_lacks_a_trial_by_now_names_it(tmp_path: Path):
    search = tiny_search(tmp_path, space=betas(0.8, 0.9))
    Driver(search, trials=2, first_points=[]).run()
    narrower = tiny_search(tmp_path, space=betas(0.1, 0.2))
    with pytest.raises(ValueError, match=r"search/0000 is outside the search space: .*beta1"):
        Driver(narrower, trials=4, first_points=[])
    assert statuses(search) == ["COMPLETE"] * 2


BESIDE = {
    "helper_of_spaces.py": "RANGE = (0.8, 0.9)\n",
    "later_of_spaces.py": "PATH = 'optim.beta1'\n",
    "random.py": "raise RuntimeError('a file beside the space replaced a module')\n",
    "own.py": "import random\nfrom helper_of_spaces import RANGE\n"
    "def space(trial):\n"
    "    from later_of_spaces import PATH\n"
    "    return {PATH: trial.suggest_float(PATH, *RANGE)}\n",
}


def test_a_space_imports_what_lies_beside_it_and_nothing_else_does(tmp_path: Path):
    for name, text in BESIDE.items():
        (tmp_path / name).write_text(text)
    before = [*sys.path]
    space = load_space(f"{tmp_path}/own.py:space", QUICK)
    assert space(optuna.create_study().ask()).keys() == {"optim.beta1"}
    assert sys.path == before


def test_a_space_that_ends_the_process_is_refused(tmp_path: Path):
    (tmp_path / "own.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(ValueError, match=r"own\.py cannot be run: SystemExit: 0"):
        load_space(f"{tmp_path}/own.py:space", QUICK)
    (tmp_path / "own.py").write_text("import sys\ndef space(trial):\n    sys.exit()\n")
    with pytest.raises(ValueError, match=r"own\.py:space: SystemExit: "):
        load_space(f"{tmp_path}/own.py:space", QUICK)


def test_what_a_space_prints_and_warns_of_is_heard_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    text = f"import warnings\ndef space(trial):\n    print('mine')\n    return {{{RATE}}}\n"
    (tmp_path / "own.py").write_text(text)
    space = load_space(f"{tmp_path}/own.py:space", QUICK)
    Driver(tiny_search(tmp_path, space=space), trials=3).run()
    assert capsys.readouterr().out == "mine\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A search of a space that tells when its code runs."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'a').close()\ndef space(trial):\n    return {{{RATE}}}\n"
    )
    write_corpus(folder / "tiny.jsonl")
    monkeypatch.chdir(folder)
    make_search("spaced", "own.py:space", trials=1)
    (tmp_path / "ran").unlink()
    return folder / "runs/spaced"


def forget() -> None:
    """Be another user, whose searches have run nothing."""
    shutil.rmtree(cache_folder() / "spaces")


def test_ones_own_space_is_found_from_any_folder(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir("/")
    assert read_search(run).space(optuna.create_study().ask()).keys() == {"optim.learning_rate"}
    make = run.parent.parent
    monkeypatch.chdir(make)
    make_search("spaced", str(make / "own.py:space"), trials=2)


def test_a_search_in_a_moved_folder_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch):
    moved = run.parent.parent.rename(run.parent.parent.with_name("moved"))
    with pytest.raises(ValueError, match=r"is not found, for there is no file .*own\.py"):
        read_search(moved / "runs/spaced")
    monkeypatch.chdir(moved)
    make_search("spaced", "own.py:space", trials=2)
    assert read_search(moved / "runs/spaced")


def test_an_old_folder_with_a_relative_space_says_what_is_the_matter(
    run: Path, monkeypatch: pytest.MonkeyPatch
):
    experiment = json.loads((run / "experiment.json").read_text())
    experiment["search"]["space"] = "own.py:space"
    (run / "experiment.json").write_text(json.dumps(experiment))
    assert read_search(run)
    monkeypatch.chdir("/")
    with pytest.raises(ValueError, match=r"there is no file own\.py: name it with --space"):
        read_search(run)
    assert read_search(run, f"{run.parent.parent}/own.py:space")


def test_a_received_folder_runs_no_code_that_its_reader_has_not_named(run: Path, tmp_path: Path):
    forget()
    own = f"{run.parent.parent}/own.py:space"
    with pytest.raises(ValueError, match="is code that no search of yours has run") as told:
        read_search(run)
    assert f"--space {own}" in str(told.value)
    assert not (tmp_path / "ran").exists()
    assert read_search(run, own)
    assert (tmp_path / "ran").exists()
    assert read_search(run), "it was named once"


def test_known_content_in_another_place_is_other_code(run: Path, tmp_path: Path):
    received = shutil.copytree(run.parent.parent, tmp_path / "received")
    (received / "numpy_like.py").write_text("")  # what lies beside it may be imported
    path = received / "runs/spaced/experiment.json"
    path.write_text(path.read_text().replace("/mine/", "/received/"))
    with pytest.raises(ValueError, match="is code that no search of yours has run"):
        read_search(path.parent)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("settings", [
    {"space_hash": None}, {"space_hash": "0" * 16}, {"space": "own.py:open"},
    {"space": "open-ended"},
])  # fmt: skip
def test_a_folder_whose_hash_and_space_do_not_match_runs_nothing(
    settings: dict[str, str | None], run: Path, tmp_path: Path
):
    experiment = json.loads((run / "experiment.json").read_text())
    experiment["search"] |= settings
    (run / "experiment.json").write_text(json.dumps(experiment))
    with pytest.raises(ValueError, match=r"has changed since|is code that no search of yours"):
        read_search(run)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("named", ["open-ended", "other.py:space", "missing.py:space"])
def test_a_named_space_that_is_not_the_searchs_is_not_run(named: str, run: Path, tmp_path: Path):
    text = (run.parent.parent / "own.py").read_text()
    (run.parent.parent / "other.py").write_text(text + "# another\n")
    with pytest.raises(ValueError, match=f"or is not {named}|there is no file {named[:10]}"):
        read_search(run, named)
    assert not (tmp_path / "ran").exists()
