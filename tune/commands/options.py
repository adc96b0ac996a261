"""What the commands share: their common options, and how bad input ends."""

import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from quarterhour.tune.experiment import Experiment
    from quarterhour.tune.places import Resources

Profile = Annotated[str, typer.Option(help="quick (two CPU cores) or paper (the reference).")]
Protocol = Annotated[str, typer.Option(help="as-run or as-described.")]
Corpus = Annotated[
    str | None,
    typer.Option(help="builtin, a file or folder, or a hub name. Default: the profile's."),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(help="builtin, a file or folder, or a hub name. Default: the profile's."),
]
MaxSteps = Annotated[
    int | None, typer.Option(help="Stop after so many steps; the schedule stays as it is.")
]
Precision = Annotated[
    str | None, typer.Option(help="fp32, bf16 or fp16. Default: the best of the device.")
]
CpusPerTrial = Annotated[
    float | None, typer.Option(help="CPU cores of a trial. Default: 1, or a share beside a GPU.")
]
GpusPerTrial = Annotated[
    str | None,
    typer.Option(
        help="GPUs of a trial, e.g. 0.25; auto: what its memory needs. Default: 1 if there is one."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="A running Ray cluster: host:port as `ray start --head` prints it, or auto."
        " Default: this machine alone."
    ),
]
Name = Annotated[str | None, typer.Option(help="Name of the run folder.")]
Runs = Annotated[Path, typer.Option(help="Folder of all run folders.")]


@contextmanager
def bad_input() -> Generator[None]:
    """End with one line and exit code 2 where what the user gave cannot be used."""
    try:
        yield
    except ValueError as error:
        raise typer.TyperException(" ".join(str(error).split())) from error
    except OSError as error:
        raise typer.TyperException(
            f"{error.filename}: {error.strerror}; choose a folder that can be written with --runs"
        ) from error


def planned_resources(
    cpus_per_trial: float | None, gpus_per_trial: str | None, address: str | None, runs: Path
) -> "Resources":
    """Resources of a trial here or on a cluster; raises ValueError for what is not there."""
    from quarterhour.tune.places import plan_resources

    if address is None:
        return plan_resources(cpus_per_trial, gpus_per_trial)
    from quarterhour.tune.cluster.machines import find_cluster

    return plan_resources(cpus_per_trial, gpus_per_trial, find_cluster(address, runs))


@contextmanager
def opened(experiment: "Experiment") -> Generator[None]:
    """The experiment's folder, held; only entering it can be the user's fault."""
    from quarterhour.tune.cluster.fit import ClusterDiedError

    with ExitStack() as stack:
        with bad_input():
            stack.enter_context(experiment.opened())
        try:
            yield
        except ClusterDiedError as error:
            print(f"quarterhour: {error}; the same command goes on", file=sys.stderr)
            raise typer.Exit(1) from error
