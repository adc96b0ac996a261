"""What the commands share: their common options, and how bad input ends."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import platformdirs
import typer

from quarterhour.tune.commands.answer import EndedError

if TYPE_CHECKING:
    from quarterhour.tune.experiment import Experiment
    from quarterhour.tune.places import Resources

# The panels of --help: of all commands, and of a command's options.
TRAIN, USE, LOOK, CHECK = "Train", "Use", "Look", "Check"
_DATA, _MACHINE, _KEPT = "Data", "Machine", "Run folder"

Profile = Annotated[
    str | None,
    typer.Option(
        help="quick (small, for a CPU) or paper (the study's sizes). Default: quick, or the"
        " trial's own."
    ),
]
Protocol = Annotated[
    str | None,
    typer.Option(help="as-run, as-described. Default: as-run, or the trial's own."),
]
TrialBudget = Annotated[
    str | None,
    typer.Option(
        "--budget", help="Of a trial: steps:N, tokens:N, flops:N or seconds:N. Default: its own."
    ),
]
Corpus = Annotated[
    str | None,
    typer.Option(
        help="builtin, a file or folder, or a hub name. Default: the profile's.",
        rich_help_panel=_DATA,
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        help="builtin, a file or folder, or a hub name. Default: the profile's.",
        rich_help_panel=_DATA,
    ),
]
MaxSteps = Annotated[
    int | None,
    typer.Option(help="Stop after this many steps; the schedule still spans the whole budget."),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="fp32, bf16 or fp16. Default: the best that the device has.", rich_help_panel=_MACHINE
    ),
]
CpusPerTrial = Annotated[
    float | None,
    typer.Option(
        help="CPU cores for each trial. Default: 1, or less where trials share a GPU; all for run.",
        rich_help_panel=_MACHINE,
    ),
]
GpusPerTrial = Annotated[
    str | None,
    typer.Option(
        help="GPUs for each trial, e.g. 0.25, or auto: as much as its memory needs."
        " Default: 1 if there is one.",
        rich_help_panel=_MACHINE,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="A running Ray cluster: host:port as `ray start --head` prints it, or auto."
        " Default: this machine alone.",
        rich_help_panel=_MACHINE,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        help="Name of the run folder. Default: made from the options.", rich_help_panel=_KEPT
    ),
]
Runs = Annotated[
    Path, typer.Option(help="Folder that holds all run folders.", rich_help_panel=_KEPT)
]

Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout, and all else on stderr."),
]
"""The option; `cli.main` acts on it."""


@contextmanager
def bad_input(written_by: str | None = "--runs") -> Generator[None]:
    """End bad input with one line and exit code 2.

    `written_by` is the option that takes the folder that the block writes; None where it only
    reads.
    """
    try:
        yield
    except ValueError as error:
        raise typer.TyperException(" ".join(str(error).split())) from error
    except OSError as error:
        raise typer.TyperException(
            f"{_fault(error)}; {_advice(str(error.filename), written_by)}"
        ) from error


def _fault(error: Exception, folder: Path | None = None) -> str:
    """An error in one line; one of the system by its file, or by a folder if it has none."""
    if isinstance(error, OSError) and (place := error.filename or folder):
        return f"{place}: {error.strerror or error}"
    return str(error)


def _advice(path: str, written_by: str | None) -> str:
    """What to do where the system does not let a file be written, or read."""
    cache = platformdirs.user_cache_path()
    if Path(path) in cache.parents or Path(path).is_relative_to(cache):
        written_by = "XDG_CACHE_HOME in the environment"
    if not written_by:
        return "check that it is there, and that you may read it and write there"
    return f"choose a folder that can be written and has room, with {written_by}"


def planned_resources(
    cpus_per_trial: float | None, gpus_per_trial: str | None, address: str | None, runs: Path
) -> "Resources":
    """A trial's resources, here or on a cluster. Raises ValueError for more than there is."""
    from quarterhour.tune.places import plan_resources

    if address is None:
        return plan_resources(cpus_per_trial, gpus_per_trial)
    from quarterhour.tune.cluster.machines import inspect_cluster

    return plan_resources(cpus_per_trial, gpus_per_trial, inspect_cluster(address, runs))


@contextmanager
def opened(experiment: "Experiment") -> Generator[None]:
    """Hold the experiment's folder. An error on entering it is bad input.

    Later ones of the system, such as a full disk, and of Ray end with one line and exit code 1.
    """
    from quarterhour.tune.places import ClusterError

    with ExitStack() as stack:
        with bad_input():
            stack.enter_context(experiment.opened())
        try:
            yield
        except (ClusterError, OSError) as error:
            fault = _fault(error, experiment.folder)
            raise EndedError(f"{fault}; the same command goes on", 1) from error
