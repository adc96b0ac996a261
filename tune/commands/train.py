"""The commands that train the six reference configurations: grid, run."""

import signal
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quarterhour.tune.commands import options
from quarterhour.tune.commands.answer import Answer, trial_answers
from quarterhour.tune.commands.console import PlainConsole
from quarterhour.tune.run_folder import CONFIG, TABLES, Row, Status, counted
from quarterhour.tune.run_reader import read_samples

if TYPE_CHECKING:
    from quarterhour.analysis.chapters.paper.comparison import Comparison
    from quarterhour.analysis.runs import Run
    from quarterhour.tune.experiment import Experiment, ExperimentRequest
    from quarterhour.tune.extension import Extension
    from quarterhour.tune.ledger import TrialSpec

app = typer.Typer()


@app.command(rich_help_panel=options.TRAIN)
def grid(
    configurations: Annotated[
        str | None,
        typer.Option(
            help="Which, with commas: names of the six, trials' folders, and FILE.py:NAME, a"
            " mapping of names of your own to settings. Default: the six."
        ),
    ] = None,
    profile: options.Profile = None,
    protocol: options.Protocol = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds for each configuration.")] = 1,
    budget: options.TrialBudget = None,
    corpus: options.Corpus = None,
    tokenizer: options.Tokenizer = None,
    max_steps: options.MaxSteps = None,
    precision: options.Precision = None,
    cpus_per_trial: options.CpusPerTrial = None,
    gpus_per_trial: options.GpusPerTrial = None,
    address: options.Address = None,
    name: options.Name = None,
    runs: options.Runs = Path("runs"),
    _json: options.Json = False,
) -> Answer:
    """Train the six reference configurations under Ray Tune; print the paper's tables beside ours.

    Configurations of your own have the same tables, without the paper's figures. The same command
    again goes on: what has finished is not trained again.
    """
    from quarterhour.analysis.chapters.paper.comparison import beside_published, write_csv
    from quarterhour.analysis.runs import load_run
    from quarterhour.tune.experiment import ExperimentRequest, build_experiment

    with options.bad_input():
        if seeds < 1:
            raise ValueError(f"--seeds is {seeds}: it must be at least 1")
        request = ExperimentRequest(
            kind="grid", chosen=tuple(configurations.split(",")) if configurations else (),
            profile=profile, protocol=protocol, corpus=corpus, tokenizer=tokenizer,
            values=_settings(max_steps, precision), trial_budget=budget, name=name, runs=runs,
            seeds=tuple(range(seeds)),
            resources=options.planned_resources(cpus_per_trial, gpus_per_trial, address, runs),
        )  # fmt: skip
        experiment = build_experiment(request)
    console = PlainConsole()
    train_all(console, experiment, runs)
    measured, tables = load_run(experiment.folder), experiment.folder / TABLES
    comparisons = beside_published(measured)
    with options.bad_input():
        write_csv(comparisons, tables)
    _print_comparisons(console, measured, comparisons)
    console.print(f"tables as csv in {tables}")
    return end(console, experiment.folder, experiment.trials(), tables=tables)


@app.command(rich_help_panel=options.TRAIN)
def run(
    configuration: Annotated[str, typer.Argument(help="One of the six, or a trial's folder.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting, e.g. optim.learning_rate=1e-3; may be repeated."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: the trial's own, or 0.")] = None,
    budget: options.TrialBudget = None,
    extend: Annotated[
        str | None,
        typer.Option(
            help="Whole length, steps:N, tokens:N or flops:N, to which a trained trial goes on."
        ),
    ] = None,
    profile: options.Profile = None,
    protocol: options.Protocol = None,
    corpus: options.Corpus = None,
    tokenizer: options.Tokenizer = None,
    max_steps: options.MaxSteps = None,
    precision: options.Precision = None,
    cpus_per_trial: options.CpusPerTrial = None,
    gpus_per_trial: options.GpusPerTrial = None,
    name: options.Name = None,
    runs: options.Runs = Path("runs"),
    _json: options.Json = False,
) -> Answer:
    """Train one configuration in this process, without Ray (for debugging)."""
    from quarterhour.search_spaces.point import parse_assignment
    from quarterhour.tune.experiment import ExperimentRequest, build_experiment
    from quarterhour.tune.ledger import prepare_trials
    from quarterhour.tune.machine import cpu_count

    with options.bad_input():
        assigned = dict(parse_assignment(text) for text in set_ or [])
        values = assigned | _settings(max_steps, precision)
        seed = values.get("seed", seed)
        if extend and (changed := [*values, *filter(None, (seed, budget, profile, protocol))]):
            raise ValueError(
                f"--extend goes on with a trial as it is, and {changed[0]} would change it: leave"
                " one of them out"
            )
        if cpus_per_trial is None:
            cpus_per_trial = cpu_count()  # nothing else runs beside it
        request = ExperimentRequest(
            kind="run", chosen=(configuration,), profile=profile, protocol=protocol, corpus=corpus,
            tokenizer=tokenizer, values=values, trial_budget=budget, extend=extend,
            name=name, runs=runs,
            seeds=None if seed is None else (seed,),
            resources=options.planned_resources(cpus_per_trial, gpus_per_trial, None, runs),
        )  # fmt: skip
        if extend and configuration not in request.past:
            raise ValueError(f"--extend needs a trial's folder, and {configuration} is none")
        experiment = build_experiment(request)
        extensions = _extensions(request, experiment)
    console = PlainConsole()
    with options.opened(experiment):
        with options.bad_input():
            todo = prepare_trials(experiment.trials(), runs)
            for extension in extensions:
                extension.begin()
        console.print(_headline(experiment, len(todo)))
        for extension in extensions:
            console.print(str(extension))
        for spec in todo:
            _train_here(console, experiment, spec)
    for spec in experiment.trials():
        _print_result(console, spec)
    return end(console, experiment.folder, experiment.trials())


def train_all(console: PlainConsole, experiment: "Experiment", runs: Path) -> None:
    """Train the trials that are not finished under Ray Tune, with their progress."""
    from quarterhour.tune.cluster.grid import run_trials
    from quarterhour.tune.ledger import prepare_trials
    from quarterhour.tune.progress import TrialsProgress

    with options.opened(experiment):
        with options.bad_input():
            todo = prepare_trials(experiment.trials(), runs)
        console.print(_headline(experiment, len(todo)))
        if todo:
            with TrialsProgress(console, todo, len(experiment.trials()) - len(todo)) as progress:
                run_trials(todo, experiment.tokens, experiment.resources, progress)


def _extensions(request: "ExperimentRequest", experiment: "Experiment") -> "list[Extension]":
    """Those of the trials that go on from a shorter one, have not begun, and are nowhere finished.

    Raises ValueError where one cannot go on.
    """
    from quarterhour.tune.extension import plan_extension
    from quarterhour.tune.ledger import finished_folders

    if not request.extend:
        return []
    finished = finished_folders(request.runs)
    return [
        plan_extension(past, spec, experiment.resources.device)
        for past, spec in zip(request.past.values(), experiment.trials(), strict=True)
        if spec.key not in finished and not (spec.folder / CONFIG).exists()
    ]


def _settings(max_steps: int | None, precision: str | None) -> dict[str, Any]:
    """The settings that have options of their own, by dotted path."""
    settings = {"budget.max_steps": max_steps, "precision": precision}
    return {path: value for path, value in settings.items() if value is not None}


def _train_here(console: PlainConsole, experiment: "Experiment", spec: "TrialSpec") -> None:
    """Train one trial in this process."""
    import torch

    from quarterhour.tune.machine import keep_freed_memory
    from quarterhour.tune.progress import TrialsProgress
    from quarterhour.tune.training.trial import Trial

    resources = experiment.resources
    torch.set_num_threads(resources.threads)
    keep_freed_memory()
    trial = Trial(spec, experiment.tokens, torch.device(resources.device))
    shown: list[str] = []
    with TrialsProgress(console, [spec], 0) as progress:
        for row in _until_stopped(trial.rows()):
            new = [text for text in trial.warnings if text not in shown]
            progress.update(spec, row | {"warnings": new})
            shown += new


def _until_stopped(rows: Generator[Row]) -> Generator[Row]:
    """A trial's rows until Ctrl-C or SIGTERM. It then stops at its next row, to go on from there.

    Raises KeyboardInterrupt, at a second Ctrl-C at once.
    """
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        asked.append(number)
        signal.signal(number, signal.default_int_handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for row in rows:
            yield row
            if asked:
                rows.close()
                raise KeyboardInterrupt
            for number in before:  # not before the first row: nothing is lost until then
                signal.signal(number, ask)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_result(console: PlainConsole, spec: "TrialSpec") -> None:
    """The trial's last measures and one of its samples."""
    result = spec.ending()
    if result and not result.reason:
        names = ("train_loss_last", "eval_loss", "heldout_loss", "ema_heldout_loss")
        names += ("heldout_bits_per_byte",)
        losses = ", ".join(
            f"{name} {result.metrics[name]:.3f}" for name in names if name in result.metrics
        )
        console.print(f"{spec.label}: {losses}")
        for sample in read_samples(spec.folder)[:1]:
            console.print(f"sample: {sample['prompt']}{sample['continuation']}", markup=False)


def _headline(experiment: "Experiment", n_todo: int) -> str:
    """What runs, on what, and what need not run again."""
    data, manifest = experiment.profile.data, experiment.tokens.manifest
    resources = experiment.resources
    precision = next(iter(experiment.configurations.values())).precision
    n_trials = len(experiment.trials())
    documents = counted(manifest.train_documents, "document")
    ended = f", {n_trials - n_todo} of them finished before" if n_todo < n_trials else ""
    return (
        f"{experiment.folder}: {counted(n_trials, 'trial')}{ended},"
        f" profile {experiment.profile.name}, protocol {experiment.protocol},"
        f" {precision} on {resources.device},"
        f" up to {resources.concurrency} at once{resources.where}\n"
        f"data {data.corpus}: {documents}, {manifest.train_tokens:,}"
        f" tokens, {manifest.heldout_documents} held out; tokenizer {data.tokenizer},"
        f" {manifest.vocab_size:,} entries; fingerprint {manifest.fingerprint}"
        + "".join(f"\n{remark}" for remark in [*manifest.remarks(), *experiment.remarks])
    )


def _print_comparisons(console: PlainConsole, run: "Run", comparisons: "list[Comparison]") -> None:
    from quarterhour.analysis.chapters.opening import sentences
    from quarterhour.analysis.chapters.paper.published import beside_the_study
    from quarterhour.analysis.terminal import comparison_table

    console.print(*(f"{sentence}\n" for sentence in sentences(run)), sep="", highlight=False)
    for comparison in comparisons:
        console.print(comparison_table(comparison))
    console.print(beside_the_study(run), highlight=False)


def end(console: PlainConsole, folder: Path, specs: "Sequence[TrialSpec]", **fields: Any) -> Answer:
    """Say how the trials ended: exit code 1 if one failed, 130 if some were stopped."""
    results = {spec.label: spec.ending() for spec in specs}
    failed = {label: result for label, result in results.items() if result and result.reason}
    stopped = [label for label, result in results.items() if not result]
    console.print(f"{len(results) - len(failed) - len(stopped)} of {len(results)} trials complete")
    for label, result in failed.items():
        console.print(f"{result.status} {label}: {result.reason}", markup=False)
    if stopped:
        console.print(f"stopped: {', '.join(stopped)}; the same command goes on from there")
    console.print(f"run folder {folder}")
    trials = trial_answers((spec.folder for spec in specs), Status.STOPPED)
    return Answer(
        exit_code=1 if failed else 130 if stopped else 0,
        fields={"run": folder, "trials": trials, **fields},
    )
