import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from searches import Driver, measured
from tiny import write_corpus

import quarterhour.tune.cli
from quarterhour.analysis.chapters.search.results import rerun_command
from quarterhour.search_spaces.point import parse_assignment
from quarterhour.search_spaces.profiles import QUICK
from quarterhour.tune.cli import main
from quarterhour.tune.ledger import TrialSpec, read_spec
from quarterhour.tune.places import plan_resources
from quarterhour.tune.run_folder import Status
from quarterhour.tune.search.queue import waiting_points
from quarterhour.tune.search.settings import SearchRequest, build_search, read_search
from quarterhour.tune.search.state import SearchState
from quarterhour.tune.start import read_past_trial

Quarterhour = Callable[..., tuple[int, str, str]]

SPACES = {
    "good.py": "def space(trial):\n"
    "    return {'optim.beta1': trial.suggest_float('optim.beta1', 0.8, 0.9)}\n"
    "number = 3\n"
    "def nothing(trial):\n    return None\n"
    "def fixed(trial):\n    return {'optim.beta1': 0.8}\n"
    "def raises(trial):\n    raise RuntimeError('no\\nluck')\n"
    "def steps(trial):\n    return space(trial) | {'budget.steps': 9}\n"
    "def seed(trial):\n    return space(trial) | {'seed': 9}\n"
    "def unknown(trial):\n    return space(trial) | {'optim.momentum': 9}\n"
    "def wrong(trial):\n    return space(trial) | {'optim.beta2': 'high'}\n"
    "def misnamed(trial):\n"
    "    return {'optim.beta1': trial.suggest_float('beta', 0.8, 0.9)}\n"
    "def swapped(trial):\n"
    "    return {'optim.beta1': trial.suggest_float('optim.beta2', 0.8, 0.9)}\n"
    "def narrow():\n    return {}\n"
    "def no_schedule(trial):\n"
    "    return {'optim.schedule': trial.suggest_categorical('optim.schedule', ['triangle'])}\n",
    "broken.py": "def space(trial:\n",
    "later.py": "def space(trial):\n"
    "    beta = trial.suggest_float('optim.beta1', 0.1, 0.9)\n"
    "    if beta < 0.15:\n"
    "        raise RuntimeError('boom')\n"
    "    return {'optim.beta1': beta}\n"
    "def number(trial):\n"
    "    return 3\n",
    "wild.py": "import random\n"
    "def space(trial):\n"
    "    beta = trial.suggest_float('optim.beta1', 0.1, 0.9)\n"
    "    return {'optim.beta1': beta, 'optim.beta2': random.uniform(0.9, 0.99)}\n"
    "def seeded(trial):\n"
    "    beta = trial.suggest_float('optim.beta1', 0.1, 0.9)\n"
    "    return {'optim.beta1': beta} | ({'seed': 9} if beta < 0.15 else {})\n",
    "raising.py": "1 / 0\n",
    "empty.py": "",
}
SPACE_ERRORS = [
    ("nosuch", "unknown space 'nosuch': use open-ended, architectures or FILE.py:NAME"),
    ("good.py", "unknown space 'good.py': use open-ended, architectures or FILE.py:NAME"),
    ("good.txt:space", "unknown space 'good.txt:space'"),
    ("nosuch.py:space", "--space nosuch.py:space: there is no file nosuch.py"),
    ("broken.py:space", "--space broken.py:space: broken.py cannot be run: "),
    ("later.py:space", "the space has a point that cannot be trained: RuntimeError: boom"),
    ("later.py:number", "--space later.py:number: TypeError: 'int' object is not iterable"),
    ("wild.py:space", "no search could go on from it, for given the same values the space has"),
    ("wild.py:seeded", "the space has a point that cannot be trained: it sets seed: use --budget"),
    ("raising.py:space", "raising.py cannot be run: ZeroDivisionError: division"),
    ("empty.py:space", "empty.py has no function space"),
    ("good.py:nosuch", "good.py has no function nosuch"),
    ("good.py:number", "good.py has no function number"),
    ("good.py:nothing", "--space good.py:nothing: "),
    ("good.py:narrow", "--space good.py:narrow: "),
    ("good.py:raises", "--space good.py:raises: RuntimeError: no luck"),
    ("good.py:fixed", "--space good.py:fixed has no parameter"),
    ("good.py:steps", "--space good.py:steps sets budget.steps: use --budget, --seed or"),
    ("good.py:seed", "--space good.py:seed sets seed: use --budget, --seed or"),
    ("good.py:unknown", "--space good.py:unknown: unknown key 'optim.momentum'"),
    ("good.py:wrong", "--space good.py:wrong: optim.beta2 is 'high'"),
    ("good.py:misnamed", "has a parameter 'beta' that does not set what it is named after"),
    ("good.py:swapped", "has a parameter 'optim.beta2' that does not set what it is named after"),
    ("good.py:no_schedule", "--space good.py:no_schedule: optim.schedule is 'triangle'"),
]
BAD_INPUT = [
    *[(f"search --space {space}", message) for space, message in SPACE_ERRORS],
    ("search --trials 0", "--trials is 0: it must be at least 1"),
    ("search --trials -1", "--trials is -1: it must be at least 1"),
    ("search --hours 0", "--hours is 0.0: it must be above 0"),
    ("search --hours nan", "--hours is nan: it must be above 0"),
    ("search --objective nosuch", "unknown objective 'nosuch': use one of heldout_loss,"),
    ("search --objective heldout_loss,", "unknown objective ''"),
    ("search --objective seconds,seconds", "--objective is 'seconds,seconds': it names a measure"),
    ("search --budget hours:3", "--budget is 'hours:3': it must be one of steps, tokens,"),
    ("search --budget steps:0", "--budget is 'steps:0'"),
    ("search --budget steps:-5", "--budget is 'steps:-5'"),
    ("search --budget steps:3", "budget steps:3 is 3 steps of data.batch_size 8"),
    ("search --budget tokens:5k", "budget tokens:5000 is 2 steps of data.batch_size 16"),
    ("search --budget tokens:3k", "and data.seq_len 128: it must be at least 4, tokens:8192"),
    ("search --budget flops:1e9", "it must be at least 4, flops:"),
    ("search --scheduler pbt", "unknown scheduler 'pbt': use asha or none"),
    ("search --scheduler asha --objective heldout_loss,seconds", "--scheduler asha stops"),
    ("search --profile huge", "unknown profile 'huge': use paper or quick"),
    ("search --precision int8", "precision is 'int8'"),
    ("search --seed -1", "seed is -1: it must be at least 0"),
    ("search --seed many", "Invalid value for '--seed'"),
    ("search --trials many", "Invalid value for '--trials'"),
    ("search --name a/b", "--name is 'a/b'"),
    ("search --corpus missing.jsonl", "corpus missing.jsonl: no such file"),
    ("search --from nosuch", "--from nosuch: it is no run folder"),
    ("search --from .", "--from .: it is no run folder"),
    ("search --from runs/search --corpus other.jsonl", "it was trained on data with fingerprint"),
    ("search --name search --budget steps:9", "runs/search was made with search.budget steps:8"),
    ("search --name search --budget steps:8 --seed 1", "runs/search was made with search.seed 0"),
    (
        "search --name search --budget steps:8 --objective eval_loss",
        "runs/search was made with search.objectives",
    ),
    (
        "search --name search --budget steps:8 --scheduler none",
        "runs/search was made with search.scheduler asha, and this is none",
    ),
    (
        "search --name search --budget steps:8 --corpus other.jsonl",
        "runs/search was made with data.fingerprint",
    ),
    ("search --name spaced --space good.py:space", "runs/spaced was made with search.space_hash"),
    ("search --from runs/damaged", "runs/damaged/experiment.json cannot be read"),
    ("search --name damaged", "runs/damaged/experiment.json cannot be read"),
    ("search --name grid", "runs/grid was made with search None"),
    ("enqueue nosuch optim.beta1=0.9", "nosuch is no search"),
    ("enqueue runs/grid optim.beta1=0.9", "runs/grid is no search"),
    ("enqueue runs/damaged optim.beta1=0.9", "runs/damaged/experiment.json cannot be read"),
    ("enqueue runs/search model.n_heads=3", "model.d_head is 32 and must be one of [8, 16]"),
    ("enqueue runs/spaced optim.beta1=0.9", "its space good.py:space has changed since"),
    ("enqueue runs/search optim.beta3=0.9", "unknown key 'optim.beta3' (did you mean optim.beta"),
    ("enqueue runs/search optim.beta1", "'optim.beta1' is not an assignment"),
    ("enqueue runs/search optim.beta1=high", "optim.beta1 is 'high'"),
    ("enqueue runs/search optim.beta1=0.5", "outside the search space: The value 0.5 of the param"),
    ("enqueue runs/search optim.decay_fraction=0.5", "optim.decay_fraction is 0.5, and with the"),
    ("enqueue runs/search model.d_ff=100", "outside the search space: model.d_ff is 100"),
    ("enqueue runs/search model.n_heads=5", "model.n_heads is 5: it must divide"),
    ("enqueue runs/search optim.beta1=0.9", "that point is trial 0000 of runs/search already"),
    ("enqueue runs/search", "Missing argument 'settings"),
    ("status nosuch", "run folder nosuch does not exist"),
    ("status runs", "runs is not a run folder, for it has no experiment.json"),
    ("status runs/grid", "runs/grid is no search but of kind grid"),
    ("status runs/begun", "runs/begun has no trial yet"),
    ("status runs/damaged", "runs/damaged/experiment.json cannot be read"),
    ("dashboard nosuch", "nosuch is no search"),
    ("dashboard runs/grid", "runs/grid is no search"),
    ("dashboard runs/search --port many", "Invalid value for '--port'"),
]  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with corpora, spaces and runs: two searches, a grid, a new one, a damaged one."""
    folder = tmp_path_factory.mktemp("template")
    write_corpus(folder / "tiny.jsonl")
    write_corpus(folder / "other.jsonl", documents=111)
    for name, text in SPACES.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(os, "fsync", lambda _: None)
        make_search("search", "open-ended", trials=6)
        make_search("spaced", "good.py:space", trials=1)
        make_search("begun", "open-ended", trials=0)
    with (folder / "good.py").open("a") as file:
        file.write("# changed\n")
    grid = json.loads((folder / "runs/search/experiment.json").read_text())
    grid |= {"kind": "grid", "search": None, "configurations": list(grid["resolved"])}
    for name, text in (("grid", json.dumps(grid)), ("damaged", '{"kind": "sea')):
        (folder / "runs" / name).mkdir()
        (folder / "runs" / name / "experiment.json").write_text(text)
    return folder


def make_search(
    name: str, space: str, trials: int, *, budget: str = "steps:8", seed: int = 0
) -> None:
    """A run folder as `quarterhour search` leaves it, with trials that took no time."""
    request = SearchRequest(
        space=space, budget=budget, objective="heldout_loss", scheduler=None, seeds=(seed,),
        profile="quick", corpus="tiny.jsonl", tokenizer=None, values={},
        name=name, runs=Path("runs"), resources=plan_resources(1, 0),
    )  # fmt: skip
    experiment, search = build_search(request)
    with experiment.opened():
        if trials:
            Driver(search, trials=trials).run()


@pytest.fixture
def folder(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the template to work in."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def quarterhour(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Quarterhour:
    """The command as a user types it, in that folder: exit code, output, errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["quarterhour", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        output, errors = capfd.readouterr()
        return int(ended.value.code or 0), " ".join(output.split()), errors

    return call


@pytest.mark.parametrize(("command", "message"), BAD_INPUT)
def test_bad_input_ends_in_one_line_and_exit_code_2_before_anything_trains(
    command: str, message: str, quarterhour: Quarterhour, folder: Path
):
    if command.startswith("search") and "--corpus" not in command:
        command += " --corpus tiny.jsonl"
    before = sorted(folder.rglob("config.json"))
    code, _, errors = quarterhour(*command.split())
    assert message in errors
    assert code == 2
    assert errors.startswith("quarterhour: ")
    assert len(errors.splitlines()) == 1
    assert sorted(folder.rglob("config.json")) == before
    assert not waiting_points(folder / "runs/search")


def test_a_second_search_on_a_run_is_refused_with_the_process_of_the_first(
    quarterhour: Quarterhour, folder: Path
):
    hold = (
        "import os, sys, filelock, pathlib\n"
        "lock = filelock.FileLock('runs/search/.lock').acquire()\n"
        "pathlib.Path('runs/search/.owner').write_text(f'{os.getpid()} on here')\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", hold]
    with subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe) as first:
        assert first.stdout
        first.stdout.readline()
        search = "search --name search --budget steps:8 --corpus tiny.jsonl --trials 7"
        code, _, errors = quarterhour(*search.split())
        assert code == 2
        assert f"runs/search is in use by quarterhour process {first.pid} on here: wait" in errors
        assert len(errors.splitlines()) == 1
        code, output, errors = quarterhour("status", "runs/search")
        assert (code, errors) == (0, "")
        assert f"runs/search: running, process {first.pid}" in output
        code, output, errors = quarterhour("enqueue", "runs/search", "model.dropout=0.25")
        assert (code, errors) == (0, "")
        assert first.stdin
        first.stdin.close()
    assert "runs/search: not running" in quarterhour("status", "runs/search")[1]


def test_status_tells_states_best_cost_and_rate(quarterhour: Quarterhour, folder: Path):
    (folder / "runs/search/elapsed.json").write_text('{"seconds": 1800}')
    code, output, errors = quarterhour("status", "runs/search")
    assert (code, errors) == (0, "")
    for part in (
        "runs/search: not running",
        "COMPLETE 6",
        "setting 0003 0000 0004 0002 0001",
        "origin large_batch baseline short_seq low_lr high_lr",
        "heldout_loss 3.125 3.205 3.205 3.285 3.325",
        "spent 48 steps, 59,392 tokens",
        "run folder runs/search",
        "trials an hour",
    ):
        assert part in output


def test_status_tells_stopped_trials_from_running_ones_and_counts_what_was_trained(
    quarterhour: Quarterhour, folder: Path
):
    run = folder / "runs/search"
    assert Driver(read_search(run), trials=7, first_points=[]).next()
    (run / "elapsed.json").write_text('{"seconds": 1800}')
    output = quarterhour("status", "runs/search")[1]
    assert "STOPPED trials go on when the search is started again" in output
    assert "COMPLETE 6 STOPPED 1" in output
    assert "12.0 trials an hour over 0.50 hours" in output
    adopted = json.loads((run / "0000/result.json").read_text()) | {"adopted_from": "runs/grid/0"}
    (run / "0000/result.json").write_text(json.dumps(adopted))
    with FileLock(run / ".lock"):
        output = quarterhour("status", "runs/search")[1]
    assert "COMPLETE 6 RUNNING 1" in output
    assert "STOPPED" not in output
    assert "10.0 trials an hour over 0.50 hours" in output


def test_status_loads_neither_torch_nor_a_sampler(folder: Path):
    script = (
        "import sys\nfrom quarterhour.tune.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print(*sys.modules)"
    )
    command = [sys.executable, "-c", script, "status", "runs/search"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.stderr == ""
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "pandas" in loaded
    heavy = {"torch", "ray", "optuna", "matplotlib", "scipy.stats", "transformers"}
    assert not heavy & loaded


def test_a_search_says_how_many_results_it_takes_from_where(
    quarterhour: Quarterhour, monkeypatch: pytest.MonkeyPatch
):
    def stops(*_: object) -> None:
        raise SystemExit(0)

    monkeypatch.setattr("quarterhour.tune.cluster.searcher.run_search", stops)
    command = "search --name new --budget steps:8 --corpus tiny.jsonl"
    sources = "--from runs/search --from runs/begun"
    output = quarterhour(*command.split(), *sources.split())[1]
    assert "results taken: 6 from runs/search, 0 from runs/begun (same budget," in output
    assert "results taken" not in quarterhour(*command.split())[1]


def test_a_search_whose_trials_all_failed_exits_with_1(
    quarterhour: Quarterhour, monkeypatch: pytest.MonkeyPatch
):
    def all_die(state: SearchState, *_: object) -> None:
        for spec in iter(state.begin, None):
            spec.write_failure()
            state.end(spec)

    monkeypatch.setattr("quarterhour.tune.cluster.searcher.run_search", all_die)
    command = "search --name dead --budget steps:12 --corpus tiny.jsonl --trials 2"
    code, output, _ = quarterhour(*command.split())
    assert code == 1, output
    assert "FAILED 2" in output


def test_an_enqueued_point_waits_with_the_searchs_budget(quarterhour: Quarterhour, folder: Path):
    command = "enqueue runs/search optim.learning_rate=2e-3 data.seq_len=64 optim.schedule=linear"
    code, output, errors = quarterhour(*command.split())
    assert (code, errors) == (0, "")
    assert "runs/search trains it after" in output
    ((_, config),) = waiting_points(folder / "runs/search")
    assert (config.optim.learning_rate, config.optim.schedule) == (2e-3, "linear")
    assert (config.data.seq_len, config.budget.steps, config.seed) == (64, 8, 0)
    code, _, errors = quarterhour(*command.split())
    assert code == 2
    assert "that point waits in runs/search already" in errors
    search = read_search(folder / "runs/search")
    assert Driver(search, trials=7, first_points=[]).run().trained == ["0006"]
    code, _, errors = quarterhour(*command.split())
    assert code == 2
    assert "that point is trial 0006 of runs/search already" in errors


def end(spec: TrialSpec) -> TrialSpec:
    """A trial that has a result, and all that is shown of one."""
    spec.write_config()
    names = ("train_loss_last", "eval_loss", "heldout_loss", "heldout_bits_per_byte")
    spec.write_result(Status.COMPLETE, {"step": 8} | dict.fromkeys(names, 3.0))
    (spec.folder / "samples.json").write_text('[{"prompt": "The", "continuation": " end"}]')
    return spec


@pytest.mark.parametrize("budget", ["steps:8", "seconds:0.12345678901234567"])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_command_of_a_trial_is_that_trial(
    budget: str, seed: int, quarterhour: Quarterhour, folder: Path
):
    make_search("seeded", "open-ended", trials=0, budget=budget, seed=seed)
    run = Path("runs/seeded")
    search = read_search(run)
    point = {"optim.learning_rate": 1.7e-3 / 3, "optim.schedule": "linear", "model.n_layers": 2}
    trial = search.trial(6, search.config_of(point), "sampler")
    if not trial.config.budget.steps:
        trial = measured(trial)
    trials = {"": end(trial)} | {
        f"-seed{spec.config.seed}": end(spec) for spec in search.fresh_trials([trial])
    }
    assert len(trials) == 4
    for spec in trials.values():
        command = rerun_command(spec.folder.absolute())
        if trial.config.budget.seconds:  # not adopted, so that it would be trained
            words = shlex.split(read_past_trial(spec.folder).command())
            values = dict(parse_assignment(word) for word in words if "=" in word)
            again = search.baseline.with_values({"seed": 0, **values})
            assert again.key(search.data_fingerprint) == spec.key
            assert replace(
                read_past_trial(spec.folder).config_at(QUICK), seed=spec.config.seed
            ) == (spec.config)
            continue
        code, output, _ = quarterhour(*shlex.split(command)[1:])
        assert code == 0, output
        found = Path(f"runs/run-seeded-0006/seeded-0006/seed{spec.config.seed}")
        assert read_spec(found).key == spec.key
        result = read_spec(found).result()
        assert result
        assert result.adopted_from == str(spec.folder)


def test_a_budget_that_is_too_small_for_some_points_is_no_reason_to_refuse(folder: Path):
    for budget in ("tokens:8192", "tokens:20k", "tokens:32k"):
        make_search(budget.replace(":", ""), "open-ended", trials=12, budget=budget)
    results = [spec.result() for spec in read_search(Path("runs/tokens8192")).trials()]
    assert Status.INFEASIBLE in [result.status for result in results if result]
    (folder / "long.py").write_text(
        "def space(trial):\n    size = trial.suggest_int('data.batch_size', 24, 32)\n"
        "    return {'data.batch_size': size, 'data.seq_len': 256}\n"
    )
    with pytest.raises(ValueError, match=r"at least 4, tokens:24576") as told:
        make_search("long", "long.py:space", trials=1, budget="tokens:20k")
    assert "tokens:20000" in str(told.value)
    make_search("long", "long.py:space", trials=1, budget="tokens:24576")


def test_what_ended_a_search_before_its_first_trial_is_said(
    quarterhour: Quarterhour, monkeypatch: pytest.MonkeyPatch
):
    def stops(state: SearchState, *_: object) -> None:
        state.stopped_because = "its disk has less than 100 MB free"

    monkeypatch.setattr("quarterhour.tune.cluster.searcher.run_search", stops)
    for name, before in (("new", "up to"), ("search", "heldout_loss")):
        command = f"search --name {name} --budget steps:8 --corpus tiny.jsonl"
        code, output, errors = quarterhour(*command.split())
        assert (code, errors) == (1, "")
        assert "stopped: its disk has less than 100 MB free" in output
        assert output.index("stopped: its disk") < output.rindex(before) or name == "new"
        assert "stopped; to go on: quarterhour search" in output


def test_help_names_the_commands_of_a_search(quarterhour: Quarterhour):
    code, output, _ = quarterhour("--help")
    assert code == 0
    for command in ("search", "enqueue", "status", "dashboard"):
        assert f" {command} " in output


def test_status_tells_no_rate_where_its_clock_lacks_time(quarterhour: Quarterhour, folder: Path):
    clock, unknown = (
        folder / "runs/search/elapsed.json",
        "no rate is known: runs/search/elapsed.json",
    )
    clock.unlink()
    assert unknown in quarterhour("status", "runs/search")[1]
    clock.write_text('{"seconds": 4.0e-7}')
    assert unknown in quarterhour("status", "runs/search")[1]
    clock.write_text("")
    code, output, errors = quarterhour("status", "runs/search")
    assert (code, len(errors.splitlines())) == (0, 1)
    assert "runs/search/elapsed.json cannot be read" in errors
    assert unknown in output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_status_only_reads(quarterhour: Quarterhour, folder: Path):
    run = folder / "runs/search"
    (run / ".lock").touch()
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(run.rglob("*"))
    above = [parent for parent in folder.parents if parent.stat().st_uid == 0]
    rights = {parent: parent.stat().st_mode for parent in above}
    try:
        for parent in above:
            parent.chmod(rights[parent] | 0o055)
        os.seteuid(65_534)
        code, output, errors = quarterhour("status", "runs/search")
        assert (code, errors) == (0, "")
        assert "COMPLETE 6" in output
        assert "runs/search: not running" in output
        os.seteuid(0)
        run.chmod(0)
        os.seteuid(65_534)
        code, output, errors = quarterhour("status", "runs/search")
    finally:
        os.seteuid(0)
        run.chmod(0o755)
        for parent, mode in rights.items():
            parent.chmod(mode)
    assert code == 2
    assert errors == (
        "quarterhour: runs/search/experiment.json cannot be read (Permission denied): its owner has"
        " to let you read it\n"
    )
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C"},
    ],
)
def test_what_a_terminal_cannot_show_is_replaced(environment: dict[str, str], folder: Path):
    (folder / "runs/search").rename(folder / "runs/söarch-日")
    script = "from quarterhour.tune.cli import main; main()"
    command = [sys.executable, "-c", script, "status", "runs/söarch-日"]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, cwd=folder, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"COMPLETE" in done.stdout
    command[-1] = "runs/nösuch-日"
    done = subprocess.run(command, cwd=folder, capture_output=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith(b"quarterhour: run folder runs/n")


def test_a_searchs_folder_has_no_colon_but_one_that_has_it_goes_on(tmp_path: Path):
    request = SearchRequest(
        profile="quick", corpus=None, tokenizer=None, values={}, seeds=(0,), name=None,
        space="spaces/mine.py:space", budget="tokens:8.2M", objective="heldout_loss",
        scheduler=None, resources=plan_resources(1, 0), runs=tmp_path,
    )  # fmt: skip
    assert request.folder == tmp_path / "search-spaces_mine.py-space-tokens-8.2M"
    old = tmp_path / "search-spaces_mine.py:space-tokens:8.2M"
    old.mkdir()
    assert request.folder == old
