"""The command that takes candidates from short runs to long ones: promote."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quarterhour.tune.commands import options
from quarterhour.tune.commands.answer import Answer, records
from quarterhour.tune.commands.console import PlainConsole
from quarterhour.tune.commands.train import end, train_all
from quarterhour.tune.run_folder import EXPERIMENT, counted

if TYPE_CHECKING:
    from quarterhour.tune.experiment import Experiment
    from quarterhour.tune.ledger import TrialSpec
    from quarterhour.tune.promotion import Rule

app = typer.Typer()


@app.command(rich_help_panel=options.TRAIN)
def promote(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Candidates: names of the six, trials' folders, FILE.py:NAME, and run folders,"
            " whose configurations or trials all are."
        ),
    ],
    budgets: Annotated[
        str, typer.Option(help="Of each stage, rising, e.g. tokens:77k,tokens:307k,tokens:1.2M.")
    ],
    keep: Annotated[
        str, typer.Option(help="How many go on from each budget but the last, e.g. 6,3.")
    ],
    seeds: Annotated[
        str, typer.Option(help="Number of seeds at each budget, e.g. 1,2,3; or one for all.")
    ] = "2",
    margin: Annotated[
        float | None,
        typer.Option(
            help="Nats by which others may be worse than the last that goes on, to go on too."
            " Default: what seed noise allows."
        ),
    ] = None,
    best: Annotated[
        int | None, typer.Option(min=1, help="Of a run folder, take this many of its best.")
    ] = None,
    profile: options.Profile = None,
    protocol: options.Protocol = None,
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
    """Train candidates at rising budgets; the best go on from each, and whoever ties with them.

    Each trial is a whole one, with its schedule over its budget. The same command again goes on;
    with further candidates, these enter at the first budget.
    """
    from quarterhour.analysis.chapters.promotion.results import standings
    from quarterhour.analysis.chapters.promotion.section import (
        rule_told,
        sentences,
        standings_table,
    )
    from quarterhour.analysis.runs import load_run
    from quarterhour.analysis.terminal import printed
    from quarterhour.tune.experiment import ExperimentRequest, build_experiment
    from quarterhour.tune.promotion import Rule, check_candidates

    with options.bad_input():
        stages = tuple(budgets.split(","))
        numbers = _numbers("--seeds", seeds)
        rule = Rule(
            budgets=stages, keep=_numbers("--keep", keep), margin=margin,
            seeds=numbers * len(stages) if len(numbers) == 1 else numbers,
        )  # fmt: skip
        request = ExperimentRequest(
            kind="promotion", chosen=_candidates(sources, best), profile=profile,
            protocol=protocol, corpus=corpus, tokenizer=tokenizer, name=name or "promotion",
            values={"precision": precision} if precision else {}, runs=runs, seeds=(0,),
            resources=options.planned_resources(cpus_per_trial, gpus_per_trial, address, runs),
        )  # fmt: skip
        candidates = build_experiment(request)
        check_candidates(candidates, rule)
    console = PlainConsole()
    console.print(rule_told(rule.described()))
    specs = _train_stages(console, candidates, rule, runs)
    measured = load_run(candidates.folder)
    console.print(*(f"{one}\n" for one in sentences(measured)), sep="", highlight=False)
    console.print(printed(standings_table(measured)))
    return end(console, candidates.folder, specs, standings=records(standings(measured)))


def _train_stages(
    console: PlainConsole, candidates: "Experiment", rule: "Rule", runs: Path
) -> "list[TrialSpec]":
    """Train the stages until one has not ended; all trials of those that have begun."""
    from quarterhour.analysis.chapters.promotion.results import going_on
    from quarterhour.analysis.runs import load_run
    from quarterhour.tune.promotion import stage_of

    names, specs = [*candidates.configurations], list["TrialSpec"]()
    for stage, budget in enumerate(rule.budgets):
        experiment = stage_of(candidates, rule, stage, names)
        train_all(console, experiment, runs)
        specs += experiment.trials()
        names = going_on(load_run(experiment.folder), stage)
        if not names:
            break
        console.print(f"from {budget} go on: {', '.join(names)}\n", highlight=False)
    return specs


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError as error:
        raise ValueError(f"{option} is '{text}': it must be whole numbers with commas") from error


def _candidates(sources: list[str], best: int | None) -> tuple[str, ...]:
    """The sources, each run folder replaced by its trials, or by the best of them."""
    from quarterhour.analysis.chapters.promotion.results import ranked_folders
    from quarterhour.analysis.runs import load_run

    chosen: list[str] = []
    for source in sources:
        if not (Path(source) / EXPERIMENT).exists():
            chosen.append(source)
            continue
        run = load_run(Path(source))
        folders = ranked_folders(run)
        if best is None and run.is_search:
            found = counted(len(folders), "complete trial")
            raise ValueError(f"{source} has {found}: say how many of the best with --best")
        chosen += [str(folder) for folder in folders[:best]]
    return tuple(chosen)
