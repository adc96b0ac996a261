"""The command that tells which settings matter: ablate."""

from pathlib import Path
from typing import Annotated

import typer

from quarterhour.tune.commands import options
from quarterhour.tune.commands.answer import Answer, records
from quarterhour.tune.commands.console import PlainConsole
from quarterhour.tune.commands.train import end, train_all

app = typer.Typer()


@app.command(rich_help_panel=options.TRAIN)
def ablate(
    configuration: Annotated[str, typer.Argument(help="One of the six, or a trial's folder.")],
    vary: Annotated[
        list[str],
        typer.Option(
            help="A setting and its levels, e.g. optim.learning_rate=6e-4,2.4e-3; may be repeated."
        ),
    ],
    design: Annotated[
        str,
        typer.Option(
            help="one-at-a-time: each level alone. cross: all combinations. fraction: the fewest"
            " combinations of two levels that tell the settings' effects."
        ),
    ] = "one-at-a-time",
    resolution: Annotated[
        int, typer.Option(help="Of a fraction: 3, 4 or 5. With 5 it tells all effects of two.")
    ] = 4,
    profile: options.Profile = None,
    protocol: options.Protocol = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds for each cell.")] = 1,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Of each trial: steps:N, tokens:N, flops:N or seconds:N; several, with commas,"
            " train the design at each. Default: the tokens of the configuration."
        ),
    ] = None,
    tune_lr: Annotated[
        bool,
        typer.Option(
            "--tune-lr",
            help="Train each cell at half, one and two times its learning rate, and compare the"
            " best of each.",
        ),
    ] = False,
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
    """Train variants of one configuration; tell which settings have an effect, and how large.

    Each is trained with an equal budget. The same command again goes on, and with more --seeds it
    trains the further ones.
    """
    from quarterhour.analysis.chapters.ablation.effects import effects
    from quarterhour.analysis.chapters.ablation.section import effects_table, sentences
    from quarterhour.analysis.runs import load_run
    from quarterhour.analysis.terminal import printed
    from quarterhour.search_spaces.designs import build_design, parse_factors
    from quarterhour.tune.ablation import build_ablation
    from quarterhour.tune.experiment import ExperimentRequest, build_experiment

    with options.bad_input():
        factors = parse_factors(vary)
        fields = [path.rpartition(".")[2] for path in factors]
        request = ExperimentRequest(
            kind="ablation", chosen=(configuration,), profile=profile, protocol=protocol,
            corpus=corpus, tokenizer=tokenizer, name=name or "-".join(["ablation", *fields]),
            values={"precision": precision} if precision else {}, runs=runs,
            seeds=tuple(range(seeds)),
            resources=options.planned_resources(cpus_per_trial, gpus_per_trial, address, runs),
        )  # fmt: skip
        around = build_experiment(request)
        if len(around.configurations) > 1:
            raise ValueError(f"{configuration} has several configurations: give a trial's folder")
        (point,) = around.configurations.values()
        planned = build_design(design, factors, resolution, point.values())
        budgets = budget.split(",") if budget else []
        experiment = build_ablation(around, planned, budgets, tune_rate=tune_lr)
    console = PlainConsole()
    if planned.generators:
        console.print(f"generators: {'; '.join(planned.generators)}")
    for effect, told in planned.effects().items():
        if told.aliases:
            console.print(f"cannot be told apart: {effect}; {'; '.join(told.aliases)}")
    train_all(console, experiment, runs)
    measured = load_run(experiment.folder)
    console.print(*(f"{one}\n" for one in sentences(measured)), sep="", highlight=False)
    console.print(printed(effects_table(measured)))
    told = records(effects(measured))
    return end(console, experiment.folder, experiment.trials(), effects=told)
