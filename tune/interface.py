"""The interface for Python: the commands as functions, and runs as tables.

    import quarterhour

    run = quarterhour.grid(["baseline", "high_lr"], seeds=2)
    run.trials, run.rows, quarterhour.best_trials(run)

Functions that train print as their commands do, adopt what is finished in the folder `runs`, and
go on with what is not. They raise ValueError for what the command line refuses, and RuntimeError
where a command ends before its end.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import pandas as pd
import typer

from quarterhour.analysis.chapters.search.results import search_results
from quarterhour.analysis.measures import final_rows
from quarterhour.analysis.runs import Run, load_run
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.search_spaces.profiles import profile_named
from quarterhour.search_spaces.reference import SIX, reference_configurations
from quarterhour.tune.commands import ablate as ablate_command
from quarterhour.tune.commands import analysis as analysis_commands
from quarterhour.tune.commands import promote as promote_command
from quarterhour.tune.commands import search as search_commands
from quarterhour.tune.commands import train as train_commands
from quarterhour.tune.commands import use as use_commands
from quarterhour.tune.commands.answer import Answer, EndedError
from quarterhour.tune.run_folder import HELDOUT_LOSS, TRIAL
from quarterhour.tune.start import read_past_trial


class Options(TypedDict, total=False):
    """What all that trains can be told; each means what the option of its name does."""

    profile: str
    corpus: str
    tokenizer: str
    precision: str
    cpus_per_trial: float
    gpus_per_trial: str
    name: str
    runs: Path


def resolve(
    configuration: str | Path = "baseline",
    values: Mapping[str, Any] | None = None,
    *,
    profile: str = "quick",
    protocol: str = "as-run",
) -> TrialConfig:
    """All settings of one of the six, or of a past trial's folder at that profile's size, with
    other `values` by dotted path."""
    own, name = profile_named(profile), str(configuration)
    if name in SIX:
        base = reference_configurations(own, protocol)[name]
    else:
        base = read_past_trial(Path(name)).config_at(own)
    return base.with_values(values or {})


def run(
    configuration: str | Path = "baseline",
    values: Mapping[str, Any] | None = None,
    *,
    seed: int | None = None,
    budget: str | None = None,
    **options: Unpack[Options],
) -> Run:
    """Train one trial in this process, without Ray."""
    assigned = [f"{path}={value!r}" for path, value in (values or {}).items()]
    asked: Any = {"set_": assigned, "seed": seed, "budget": budget}
    return _trained(train_commands.run, configuration=str(configuration), **asked, **options)


def grid(
    configurations: Sequence[str | Path] = (),
    *,
    seeds: int = 1,
    budget: str | None = None,
    **options: Unpack[Options],
) -> Run:
    """Train configurations under Ray Tune: the six, or those that are named."""
    chosen = ",".join(map(str, configurations)) or None
    asked: Any = {"configurations": chosen, "seeds": seeds, "budget": budget}
    return _trained(train_commands.grid, **asked, **options)


def search(
    *,
    trials: int,
    space: str = "open-ended",
    objective: str = HELDOUT_LOSS,
    budget: str | None = None,
    from_: Sequence[Path] = (),
    **options: Unpack[Options],
) -> Run:
    """Search until so many trials have ended, the first points included."""
    asked: Any = {"trials": trials, "space": space, "objective": objective, "budget": budget}
    return _trained(search_commands.search, **asked, from_=list(from_), **options)


def ablate(
    configuration: str | Path,
    vary: Mapping[str, Sequence[Any]],
    *,
    design: str = "one-at-a-time",
    seeds: int = 1,
    budget: str | None = None,
    **options: Unpack[Options],
) -> Run:
    """Train variants of a configuration, to tell which settings have an effect."""
    factors = [f"{path}={','.join(map(repr, levels))}" for path, levels in vary.items()]
    asked: Any = {"vary": factors, "design": design, "seeds": seeds, "budget": budget}
    return _trained(ablate_command.ablate, configuration=str(configuration), **asked, **options)


def promote(
    sources: Sequence[str | Path],
    *,
    budgets: Sequence[str],
    keep: Sequence[int],
    seeds: Sequence[int] = (2,),
    best: int | None = None,
    **options: Unpack[Options],
) -> Run:
    """Train candidates at rising budgets; the best go on from each."""
    asked: Any = {"sources": list(map(str, sources)), "budgets": ",".join(budgets), "best": best}
    asked |= {"keep": ",".join(map(str, keep)), "seeds": ",".join(map(str, seeds))}
    return _trained(promote_command.promote, **asked, **options)


def best_trials(run: Run, n_best: int = 5) -> pd.DataFrame:
    """The best complete trials, by held-out loss or a search's objective: settings, measures and
    folder, a row each."""
    if run.is_search:
        return search_results(run).ranked().head(n_best)
    last = final_rows(run, [name for name in run.rows if name not in TRIAL])
    return last.merge(run.trials, on=TRIAL).sort_values(HELDOUT_LOSS).head(n_best)


def report(*runs: Run) -> Path:
    """Write the report of one or several runs; the page's path."""
    answer = _call(analysis_commands.report, folders=[run.folder for run in runs])
    return Path(answer.fields["page"])


def export(trial: str | Path, folder: str | Path) -> None:
    """Write a trained trial as a new folder that transformers loads."""
    _call(use_commands.export, trial=Path(trial), folder=Path(folder))


def sample(
    trial: str | Path, prompt: str, *, tokens: int = 100, temperature: float = 1.0, seed: int = 0
) -> str:
    """What a trained trial writes after a prompt."""
    from quarterhour.tune.trained import read_trained  # with torch, which takes a second to load

    trained = read_trained(Path(trial))
    return "".join(trained.writes(prompt, tokens=tokens, temperature=temperature, seed=seed))


def _trained(command: Callable[..., Answer], **options: Any) -> Run:
    return load_run(Path(_call(command, **options).fields["run"]))


def _call(command: Callable[..., Answer], **options: Any) -> Answer:
    try:
        return command(**options)
    except typer.TyperException as error:
        raise ValueError(error.format_message()) from error
    except EndedError as error:
        raise RuntimeError(str(error)) from error
