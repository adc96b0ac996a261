"""The commands of the open-ended search: search, enqueue, status, dashboard."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from quarterhour.analysis.chapters.search.results import search_results
from quarterhour.analysis.runs import load_run
from quarterhour.analysis.terminal import best_table, seed_table, spent_text, states_table
from quarterhour.tune.commands.options import (
    Address,
    Corpus,
    CpusPerTrial,
    GpusPerTrial,
    Name,
    Precision,
    Profile,
    Runs,
    Tokenizer,
    bad_input,
    named_folder,
    opened,
    planned_resources,
)  # fmt: skip

if TYPE_CHECKING:
    from quarterhour.tune.experiment import Experiment
    from quarterhour.tune.search.settings import Search

app = typer.Typer()
DEFAULTS = {"quick", "open-ended", "heldout_loss", None}

RunFolder = Annotated[Path, typer.Argument(help="Run folder of a search, such as runs/search.")]


@app.command()
def search(
    profile: Profile = "quick",
    space: Annotated[str, typer.Option(help="open-ended, or FILE.py:NAME.")] = "open-ended",
    trials: Annotated[
        int | None, typer.Option(help="End after so many trials, the first ones counted.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="Begin no trial after so many hours, all starts counted.")
    ] = None,
    from_: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Run folder whose finished trials come first; repeatable."),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="A reported measure; several, with commas, give a Pareto front.")
    ] = "heldout_loss",
    budget: Annotated[
        str | None,
        typer.Option(
            help="What each trial may spend: steps:N, tokens:N, flops:N or seconds:N."
            " Default: the tokens of the profile's baseline."
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="asha (default for one objective) stops the worse half early; or none."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sampler and of every trial.")] = 0,
    corpus: Corpus = None,
    tokenizer: Tokenizer = None,
    precision: Precision = None,
    cpus_per_trial: CpusPerTrial = None,
    gpus_per_trial: GpusPerTrial = None,
    address: Address = None,
    name: Name = None,
    runs: Runs = Path("runs"),
) -> None:
    """Search on from the six reference points: Optuna proposes, every trial has one equal budget.

    Ctrl-C stops it, the same command goes on, and larger --trials or --hours extend it; with
    neither it goes on until it is stopped.
    """
    from quarterhour.tune.cluster.searcher import Limits, run_search
    from quarterhour.tune.progress import SearchProgress
    from quarterhour.tune.search.settings import build_search

    with bad_input():
        limits = Limits(trials=trials, hours=hours)
        given = {profile, space, objective, budget, scheduler} - DEFAULTS
        default = "-".join(["search", *sorted(str(part).replace("/", "_") for part in given)])
        experiment, planned = build_search(
            space=space, budget=budget, objective=objective, scheduler=scheduler, seed=seed,
            profile=profile, protocol="as-run", corpus=corpus, tokenizer=tokenizer,
            values={} if precision is None else {"precision": precision},
            folder=named_folder(name, default, runs),
            resources=planned_resources(cpus_per_trial, gpus_per_trial, address, runs),
        )  # fmt: skip
        first_points = planned.first_points(from_ or [])
    console = Console()
    console.print(_headline(experiment, planned))
    outside = planned.reference.keys() - {origin for origin, _ in first_points}
    if outside:
        console.print(f"outside the space and so not trained: {', '.join(sorted(outside))}")
    with opened(experiment):
        with SearchProgress(console, trials) as progress:
            searcher = run_search(experiment, planned, first_points, limits, progress)
        complete = searcher.ended and not searcher.stopped_because
        if complete:
            complete = _train_with_fresh_seeds(console, experiment, planned)
        _print_results(console, planned.folder)
    if searcher.stopped_because:
        console.print(f"stopped: {searcher.stopped_because}", markup=False)
    if not complete:
        again = shlex.join(["quarterhour", *sys.argv[1:]])
        console.print(f"stopped; to go on: {again}", markup=False, soft_wrap=True)
        raise typer.Exit(1 if searcher.stopped_because else 130)


def _headline(experiment: "Experiment", search: "Search") -> str:
    """What is searched, on what."""
    from quarterhour.tune.run_folder import OBJECTIVES

    manifest, resources = experiment.tokens.manifest, experiment.resources
    objectives = ", ".join(f"{OBJECTIVES[name]} {name}" for name in search.objectives)
    return (
        f"{search.folder}: {objectives}; each trial {search.budget}, seed {search.seed}, scheduler"
        f" {search.scheduler}, {search.baseline.precision} on {resources.device},"
        f" up to {resources.concurrency} at once{resources.where}\n"
        f"data {experiment.profile.data.corpus}: {manifest.train_tokens:,} tokens, fingerprint"
        f" {manifest.fingerprint}"
    )


def _train_with_fresh_seeds(console: Console, experiment: "Experiment", search: "Search") -> bool:
    """Train the best trials and the best of the six with fresh seeds; whether all have ended."""
    from quarterhour.tune.cluster.grid import run_trials
    from quarterhour.tune.ledger import open_trials
    from quarterhour.tune.progress import TrialsProgress
    from quarterhour.tune.search.settings import CANDIDATES

    results = search_results(load_run(search.folder))
    names = list(results.ranked()["configuration"].head(CANDIDATES))
    reference = results.best_of_reference()
    if reference is not None:
        names.append(reference["configuration"])
    chosen = [spec for spec in search.trials() if spec.name in names]
    fresh = search.fresh_trials(chosen)
    todo = open_trials(fresh, search.folder.parent)
    if todo:
        console.print(f"the best of the search and of the six, {len(todo)} trials with fresh seeds")
        with TrialsProgress(console, todo, len(fresh) - len(todo)) as progress:
            run_trials(todo, experiment.tokens, experiment.resources, progress)
    return all(spec.result() for spec in fresh)


def _print_results(console: Console, folder: Path) -> None:
    results = search_results(load_run(folder))
    tables = [states_table(results), best_table(results), seed_table(results)]
    for table in tables:
        if table.rows:
            console.print(table)
    console.print(spent_text(results))
    console.print(f"run folder {folder}")


@app.command()
def enqueue(
    folder: RunFolder,
    settings: Annotated[list[str], typer.Argument(help="Settings, e.g. optim.learning_rate=2e-3.")],
) -> None:
    """Add a point to a search, which trains it next; what is not given is the baseline's."""
    from quarterhour.search_spaces.open_ended import locate
    from quarterhour.search_spaces.point import parse_assignment
    from quarterhour.tune.search.queue import add_point, waiting_points
    from quarterhour.tune.search.settings import read_search

    with bad_input():
        planned = read_search(folder)
        values = dict(parse_assignment(text) for text in settings)
        fixed = [path for path in values if not path.startswith(("model.", "optim.", "data."))]
        if fixed:
            raise ValueError(f"{fixed[0]} is the same for all trials of a search: leave it out")
        config = planned.config_of(values)
        locate(planned.space, planned.baseline, config)
        key = config.key(planned.data_fingerprint)
        same = [spec for spec in planned.trials() if spec.key == key]
        if same:
            raise ValueError(f"that point is trial {same[0].name} of {folder} already")
        waiting = [other.key(planned.data_fingerprint) for _, other in waiting_points(folder)]
        if key in waiting:
            raise ValueError(f"that point waits in {folder} already")
        add_point(folder, config)
    Console().print(f"{folder} trains it next; if it is not running, start it again")


@app.command()
def status(folder: RunFolder) -> None:
    """Show how far a search is, also while it runs: states, best, cost, rate, what is running."""
    from quarterhour.tune.experiment import owner
    from quarterhour.tune.search.settings import SearchClock

    console = Console()
    with bad_input():
        results = search_results(load_run(folder))
    process = owner(folder)
    console.print(f"{folder}: " + (f"running, process {process}" if process else "not running"))
    _print_results(console, folder)
    hours = SearchClock(folder).seconds / 3600
    console.print(f"{len(results.searched) / hours:.1f} trials an hour over {hours:.2f} hours")


@app.command()
def dashboard(
    folder: RunFolder,
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 8080,
) -> None:
    """Open optuna-dashboard on a search, on this machine alone; Ctrl-C ends it."""
    from optuna_dashboard import run_server

    from quarterhour.tune.experiment import owner
    from quarterhour.tune.search.settings import read_search
    from quarterhour.tune.search.study import LedgerStudy, open_storage

    with bad_input():
        planned = read_search(folder)
        if not owner(folder):
            study = LedgerStudy(planned)
            for spec in planned.trials():
                study.take_up(spec)
            study.write()
        Console().print(f"http://127.0.0.1:{port}/ shows {folder}; Ctrl-C ends it")
        try:
            run_server(open_storage(folder), host="127.0.0.1", port=port)
        except OSError as error:
            raise ValueError(f"--port is {port}: {error.strerror}; give another") from error
