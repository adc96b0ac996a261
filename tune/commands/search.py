"""The commands of the open-ended search: search, enqueue, status, dashboard."""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quarterhour.tune.commands import options
from quarterhour.tune.commands.answer import Answer, EndedError, records, trial_answers
from quarterhour.tune.commands.console import PlainConsole
from quarterhour.tune.run_folder import ELAPSED, OBJECTIVES, STUDY, Status, counted
from quarterhour.tune.run_reader import (
    elapsed_seconds,
    owner,
    read_experiment,
    trial_folders,
)

if TYPE_CHECKING:
    from quarterhour.analysis.chapters.search.results import SearchResults
    from quarterhour.tune.experiment import Experiment
    from quarterhour.tune.ledger import TrialSpec
    from quarterhour.tune.search.settings import Search

app = typer.Typer()

RunFolder = Annotated[Path, typer.Argument(help="Run folder of a search, such as runs/search.")]
OwnSpace = Annotated[
    str | None,
    typer.Option(
        "--space",
        help="Space file to execute, FILE.py:NAME; needed for a search that is not your own.",
    ),
]


@app.command(rich_help_panel=options.TRAIN)
def search(
    profile: options.Profile = None,
    space: Annotated[
        str, typer.Option(help="open-ended, architectures or FILE.py:NAME.")
    ] = "open-ended",
    around: Annotated[
        str | None,
        typer.Option(
            help="A trial's folder, or one of the six, to search around instead of the six."
        ),
    ] = None,
    free: Annotated[
        str | None,
        typer.Option(
            help="Parameters of the space that vary, with commas, e.g."
            " optim.learning_rate,model.n_layers; the rest stays as --around has it. Default: all."
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="End after this many trials, the first points included.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="Begin no trial after this many hours over all starts.")
    ] = None,
    from_: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Run folder to take finished results from; may be repeated."),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(help="Measure to search by. Several, with commas, give a Pareto front."),
    ] = "heldout_loss",
    budget: Annotated[
        str | None,
        typer.Option(
            help="What each trial may spend: steps:N, tokens:N, flops:N or seconds:N."
            " Default: the tokens of the baseline, or of --around."
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="asha stops the worse half early; none stops no trial."
            " Default: asha for one objective, none for several."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampler and of every trial.")] = 0,
    corpus: options.Corpus = None,
    tokenizer: options.Tokenizer = None,
    precision: options.Precision = None,
    cpus_per_trial: options.CpusPerTrial = None,
    gpus_per_trial: options.GpusPerTrial = None,
    address: options.Address = None,
    name: options.Name = None,
    runs: options.Runs = Path("runs"),
    _json: options.Json = False,
) -> Answer:
    """Search on from the six reference points: Optuna proposes, and all trials have equal budgets.

    Ctrl-C stops the search and the same command goes on. Larger --trials or --hours extend it.
    With neither it runs until it is stopped.
    """
    from quarterhour.tune.cluster.searcher import run_search
    from quarterhour.tune.progress import SearchProgress
    from quarterhour.tune.search.first_points import points_of, starting_points
    from quarterhour.tune.search.limits import Limits
    from quarterhour.tune.search.settings import SearchRequest, build_search
    from quarterhour.tune.search.state import SearchState

    with options.bad_input():
        limits = Limits(trials=trials, hours=hours)
        request = SearchRequest(
            space=space, budget=budget, objective=objective, scheduler=scheduler, seeds=(seed,),
            profile=profile, corpus=corpus, tokenizer=tokenizer, name=name, runs=runs,
            around=around, free=tuple(free.split(",")) if free else (),
            values={} if precision is None else {"precision": precision},
            resources=options.planned_resources(cpus_per_trial, gpus_per_trial, address, runs),
        )  # fmt: skip
        experiment, planned = build_search(request)
        taken = {source: points_of(planned, source) for source in from_ or []}
        first_points = starting_points(planned, chain.from_iterable(taken.values()))
    console = PlainConsole()
    console.print(_headline(experiment, planned, taken))
    for configuration, config in planned.reference.items():
        if reason := planned.why_outside(config):
            console.print(f"{configuration} is not trained: {reason}")
    with options.opened(experiment):
        with SearchProgress(console, trials) as progress:
            with options.bad_input():
                state = SearchState(planned, experiment.resources, first_points, limits, progress)
            run_search(state, experiment, progress)
        complete = state.ended and not state.stopped_because
        if complete:
            fresh = _fresh_trials(planned)
            _train(console, experiment, fresh)
            complete = all(spec.ending() for spec in fresh)
    if state.stopped_because:
        console.print(f"stopped: {state.stopped_because}")
    results = _results(planned.folder) if planned.trials() else None
    if results:
        _print_results(console, planned.folder, results)
    endings = [spec.ending() for spec in planned.trials()]
    code = int(all(ending and ending.status is Status.FAILED for ending in endings))
    if not complete:
        again = shlex.join(["quarterhour", *sys.argv[1:]])
        console.print(f"stopped; to go on: {again}")
        code = 1 if state.stopped_because else 130
    told = {"stopped_because": state.stopped_because}
    fields = _fields(planned.folder, results) if results else {"run": planned.folder}
    return Answer(exit_code=code, fields=told | fields)


def _headline(
    experiment: "Experiment", search: "Search", taken: Mapping[Path, Sequence[object]]
) -> str:
    """What is searched, on what, and how many results were taken from each other run."""
    sources = ", ".join(f"{len(points)} from {source}" for source, points in taken.items())
    manifest, resources = experiment.tokens.manifest, experiment.resources
    objectives = ", ".join(f"{OBJECTIVES[name]} {name}" for name in search.objectives)
    return (
        f"{search.folder}: {objectives}; each trial {search.budget}, seed {search.seed}, scheduler"
        f" {search.scheduler}, {search.baseline.precision} on {resources.device},"
        f" up to {resources.concurrency} at once{resources.where}\n"
        f"data {experiment.profile.data.corpus}: {manifest.train_tokens:,} tokens, fingerprint"
        f" {manifest.fingerprint}"
        + "".join(f"\n{remark}" for remark in manifest.remarks())
        + (f"\nresults taken: {sources} (same budget, seed, precision and space)" if taken else "")
    )


def _fresh_trials(search: "Search") -> "list[TrialSpec]":
    """The best trials and the best reference point, each with fresh seeds."""
    from quarterhour.tune.search.settings import CANDIDATES

    results = _results(search.folder)
    names = list(results.ranked()["configuration"].head(CANDIDATES))
    reference = results.best_of_reference()
    if reference is not None:
        names.append(reference["configuration"])
    return search.fresh_trials([spec for spec in search.trials() if spec.name in names])


def _train(console: PlainConsole, experiment: "Experiment", fresh: "Sequence[TrialSpec]") -> None:
    """Train those of the trials with fresh seeds that have not finished."""
    from quarterhour.tune.cluster.grid import run_trials
    from quarterhour.tune.ledger import prepare_trials
    from quarterhour.tune.progress import TrialsProgress

    todo = prepare_trials(fresh, experiment.folder.parent)
    if todo:
        trials = counted(len(todo), "trial")
        console.print(f"the best of the search and of its reference, {trials} with fresh seeds")
        with TrialsProgress(console, todo, len(fresh) - len(todo)) as progress:
            run_trials(todo, experiment.tokens, experiment.resources, progress)


def _results(folder: Path) -> "SearchResults":
    """What a search has come to."""
    from quarterhour.analysis.chapters.search.results import search_results
    from quarterhour.analysis.runs import load_run

    return search_results(load_run(folder))


def _fields(folder: Path, results: "SearchResults") -> dict[str, Any]:
    """What a search has come to, for --json; its best comes first."""
    from quarterhour.analysis.chapters.search.results import seed_comparison, spent

    unended = Status.RUNNING if owner(folder) else Status.STOPPED
    return {
        "run": folder,
        "objectives": results.objectives,
        "best": list(results.ranked()["configuration"]),
        "seed_comparison": records(seed_comparison(results)),
        "spent": spent(results).to_dict(),
        "trials": trial_answers(trial_folders(folder), unended),
    }


def _print_results(console: PlainConsole, folder: Path, results: "SearchResults") -> None:
    from quarterhour.analysis.terminal import best_table, seed_table, spent_text, states_table

    for table in (seed_table(results), best_table(results), states_table(results)):
        if table:
            console.print(table, "")
    console.print(spent_text(results))
    console.print(f"run folder {folder}")


@app.command(rich_help_panel=options.TRAIN)
def enqueue(
    folder: RunFolder,
    settings: Annotated[list[str], typer.Argument(help="Settings, e.g. optim.learning_rate=2e-3.")],
    space: OwnSpace = None,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Return when the point has ended, with its result."),
    ] = False,
    _json: options.Json = False,
) -> Answer:
    """Add a point to a search. What you leave out is the baseline's.

    It is trained after interrupted trials, the search's first points and earlier queued points,
    and before Optuna's proposals. With --wait, a point that the search has already is waited for.
    """
    from quarterhour.search_spaces.point import parse_assignment
    from quarterhour.tune.search.queue import add_point
    from quarterhour.tune.search.settings import read_search

    with options.bad_input(written_by=None):
        search = read_search(folder, space)
        config = search.point(dict(parse_assignment(text) for text in settings))
        known = search.why_not_new(config)
        if known and not wait:
            raise ValueError(known)
        if wait and not known and not owner(folder):
            raise ValueError(
                f"no search runs in {folder}, so the point is not added: start it again in another"
                " terminal, or leave out --wait"
            )
        if not known:
            add_point(folder, config)
    if wait:
        return _ended(folder, config.key(search.data_fingerprint))
    PlainConsole().print(
        f"{folder} trains it after interrupted trials, first points and earlier queued points; if"
        " it is not running, start it again"
    )
    return Answer(fields={"run": folder})


def _ended(folder: Path, key: str) -> Answer:
    """Wait for a point's end; its result, and whether it beats the best. 1 if it has none."""
    from quarterhour.analysis.chapters.search.results import against_best
    from quarterhour.tune.search.waiting import NoEndError, wait_for_end

    try:
        with options.bad_input(written_by=None):
            trial = wait_for_end(folder, key)
            results = _results(folder)
    except NoEndError as error:
        raise EndedError(str(error), 1) from error
    except KeyboardInterrupt as error:
        line = "stopped waiting; the point stays in the search, and the same command waits on"
        raise EndedError(line, 130) from error
    compared = against_best(results, trial.name)
    (told,) = trial_answers([trial], Status.RUNNING)
    _print_ended(told, compared)
    failed = told["status"] == Status.FAILED
    fields = {"run": folder, "trial": told, "against_best": compared}
    return Answer(exit_code=1 if failed else 0, fields=fields)


def _print_ended(trial: Mapping[str, Any], compared: Mapping[str, Any]) -> None:
    objective = compared["objective"]
    value = trial.get("metrics", {}).get(objective)
    outcome = trial.get("reason") or f"{objective} {value:.4f}"
    console = PlainConsole()
    console.print(f"{trial['folder']}: {trial['status']}, {outcome}")
    figures = ""
    if compared["best"]:
        half = (compared["high"] - compared["low"]) / 2
        spread = "" if math.isnan(half) else f" ± {half:.4f} by seed noise"
        figures = f" (less trial {compared['best']}: {compared['difference']:+.4f}{spread})"
    console.print(f"better than the best of the others? {compared['verdict']}{figures}")


@app.command(rich_help_panel=options.LOOK)
def status(folder: RunFolder, _json: options.Json = False) -> Answer:
    """Show how far a search is, also while it runs: states, best trials, cost, rate."""
    console = PlainConsole()
    with options.bad_input(written_by=None):
        results = _results(folder)
        rate, process = _rate(folder, results), owner(folder)
    console.print(f"{folder}: " + (f"running, process {process}" if process else "not running"))
    if Status.STOPPED in set(results.searched["status"]):
        console.print(f"{Status.STOPPED} trials go on when the search is started again")
    _print_results(console, folder, results)
    if rate:
        console.print(rate)
    told = {"process": process, "elapsed_seconds": elapsed_seconds(folder)}
    return Answer(fields=told | _fields(folder, results))


def _rate(folder: Path, results: "SearchResults") -> str:
    """How many trials a search ends in an hour; adopted ones took no time."""
    ended = results.searched["status"].isin([status for status in Status if status.ended])
    trained = results.searched.loc[ended & results.searched["adopted_from"].isna()]
    seconds, resources = elapsed_seconds(folder), read_experiment(folder).get("resources") or {}
    if seconds * resources.get("concurrency", 1) < trained["seconds"].sum():
        return f"no rate is known: {folder / ELAPSED} lacks time in which its trials were trained"
    if not seconds:
        return ""
    hours = seconds / 3600
    return f"{len(trained) / hours:.1f} trials an hour over {hours:.2f} hours"


@app.command(rich_help_panel=options.LOOK)
def dashboard(
    folder: RunFolder,
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 8080,
    space: OwnSpace = None,
) -> None:
    """Open optuna-dashboard on a search, on this machine alone; Ctrl-C ends it.

    It only shows: nothing can be changed through it.
    """
    from quarterhour.tune.search.dashboard import Dashboard, serve, study_of
    from quarterhour.tune.search.journal import open_storage
    from quarterhour.tune.search.settings import read_search

    with options.bad_input(written_by=None):
        is_told = owner(folder) and (folder / STUDY).exists()
        storage = open_storage(folder) if is_told else study_of(read_search(folder, space))
        PlainConsole().print(f"http://127.0.0.1:{port}/ shows {folder}; Ctrl-C ends it")
        serve(Dashboard(folder, storage), port)
