"""The points that a search begins with: results of other runs, and the six."""

from collections.abc import Iterable
from pathlib import Path

from quarterhour.search_spaces.point import TrialConfig
from quarterhour.tune.foreign import damage_told
from quarterhour.tune.ledger import TrialSpec, read_spec
from quarterhour.tune.run_reader import read_experiment, trial_folders
from quarterhour.tune.search.settings import Search

FirstPoint = tuple[str, TrialConfig]
"""Where it is from, the name of a run or of one of the six, and the configuration."""


def starting_points(search: Search, taken: Iterable[FirstPoint]) -> list[FirstPoint]:
    """Points taken from other runs, then the six in the space; each point once."""
    six = [(n, config) for n, config in search.reference.items() if not search.why_outside(config)]
    points = [*taken, *six]
    # The six keep their names, wherever they come from.
    origins = {config.key(search.data_fingerprint): origin for origin, config in points}
    configs = {config.key(search.data_fingerprint): config for _, config in points}
    return [(origins[key], config) for key, config in configs.items()]


def points_of(search: Search, source: Path) -> list[FirstPoint]:
    """Another run's results with the search's budget, seed and precision, in its space.

    Raises ValueError where it is no run folder or was trained on other data.
    """
    description = read_experiment(source)
    if not description:
        raise ValueError(f"--from {source}: it is no run folder, for it has no experiment.json")
    other = description.get("data", {}).get("fingerprint")
    if other != search.data_fingerprint:
        raise ValueError(
            f"--from {source}: it was trained on data with fingerprint {other}, and this search"
            f" is on {search.data_fingerprint}; their losses cannot be compared"
        )
    taken: list[FirstPoint] = []
    for folder in trial_folders(source):
        with damage_told():
            if _is_reusable(search, spec := search.as_now(read_spec(folder))):
                taken.append((source.name, search.own(spec.config)))
    return taken


def _is_reusable(search: Search, spec: TrialSpec) -> bool:
    """Whether a trial of another run has a result that the search would come to itself."""
    result = spec.result()
    if not (result and result.final):
        return False
    if search.sharing and not spec.may_adopt(spec.folder):
        return False
    return not search.why_unfit(spec.config)
