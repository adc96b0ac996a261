"""The machines of a running Ray cluster, looked at before anything trains on them."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock, Timeout
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from quarterhour.search_spaces.point import NUMERICS_VERSION
from quarterhour.tune.cluster.connection import joined, own_folder
from quarterhour.tune.experiment import git_commit
from quarterhour.tune.machine import describe_hardware, graphics_cards
from quarterhour.tune.places import Cluster

ANSWER_SECONDS = 60
SHARED = "shares the folder"
Facts = dict[str, Any]


def inspect_cluster(address: str, runs: Path) -> Cluster:
    """The cluster that answers at an address.

    Raises ValueError unless its machines are alike, this one among them, and share the folder
    `runs`: a trial's numbers would depend on where it runs.
    """
    runs.mkdir(parents=True, exist_ok=True)
    with own_folder(str(runs.absolute()), ".ray") as folder, joined(address, folder):
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        here = ray.get_runtime_context().get_node_id()
        lock = f"{folder}/lock"
        with FileLock(lock):
            facts = {node["NodeID"]: _facts(node, lock) for node in nodes}
    if here not in facts:
        raise ValueError(
            f"--address {address}: this machine gives the cluster no CPUs; start the command on one"
            " that does, for what it finds there has to hold for all"
        )
    for node in nodes:
        check_alike(facts[here], facts[node["NodeID"]], node["NodeManagerAddress"], runs)
    return Cluster(
        address=address,
        shared_folder=str(runs.absolute()),
        machines=tuple(facts),
        cpus=facts[here]["CPUs"],
        gpus=facts[here]["GPUs"],
        memory_bytes=int(min(node["Resources"]["memory"] for node in nodes)),
    )


def check_alike(here: Facts, there: Facts, machine: str, runs: Path) -> None:
    """Raises ValueError where another machine is not as this one is."""
    if not there[SHARED]:
        raise ValueError(
            f"--runs {runs}: machine {machine} of the cluster does not have it by that path, may"
            " not write there, or does not see its locks; give a folder that all machines share"
        )
    for name, value in here.items():
        if there[name] != value:
            raise ValueError(
                f"--address: machine {machine} has {name} {there[name]}, and this one {value}; use"
                " machines and installations that are alike"
            )


def _facts(node: dict[str, Any], lock: str) -> Facts:
    """What Ray says of a machine, and what the machine says of itself."""
    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    asked = ray.remote(num_cpus=0)(_describe).options(scheduling_strategy=strategy).remote(lock)
    offered = node["Resources"]
    try:
        said = ray.get(asked, timeout=ANSWER_SECONDS)
    except RayError as error:
        raise ValueError(
            f"--address: machine {node['NodeManagerAddress']} cannot run quarterhour"
            f" ({str(error).strip().splitlines()[-1]}); install it there as it is here"
        ) from error
    return {"CPUs": offered["CPU"], "GPUs": offered.get("GPU", 0.0), **said}


def _describe(lock: str) -> Facts:
    """Of the machine that this runs on; `lock` is held in the folder of all runs."""
    hardware = describe_hardware("cpu")
    return {
        "processor": hardware["name"],
        "cores": hardware["cores"],
        "graphics cards": graphics_cards("name", "memory.total"),
        "torch": version("torch"),
        "quarterhour": git_commit() or version("quarterhour"),
        "numerics version": NUMERICS_VERSION,
        SHARED: _is_held(Path(lock)),
    }


def _is_held(lock: Path) -> bool:
    """Whether a lock is there, can be asked for, and is held by another."""
    try:
        if lock.exists():
            with FileLock(lock, timeout=0):
                pass
    except Timeout:
        return True
    except OSError:
        pass
    return False
