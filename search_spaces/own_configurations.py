"""A user's own named configurations: a mapping in a Python file of theirs, whose code runs.

    variants = {"swiglu": {"model.feed_forward": "swiglu", "model.d_ff": 170}, "muon": {…}}

Each name has dotted paths with their values, on a profile's baseline.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quarterhour.search_spaces.point import TrialConfig
from quarterhour.search_spaces.user_file import run_for

OPTION = "--configurations"
# A configuration's folder has its name. A number would be a search's trial.
_NAME = re.compile(r"(?!\d+$)\w[\w.+=-]{0,79}")

Values = Mapping[str, Any]


def own_configurations(
    name: str, six: Mapping[str, TrialConfig]
) -> dict[str, tuple[TrialConfig, Values]]:
    """Each configuration of `FILE.py:NAME` by name, and the values that its file gives it.

    They stand on the baseline of the `six`. Raises ValueError, one line, for what is none.
    """
    found = run_for(OPTION, name)
    if not isinstance(found, Mapping) or not found:
        raise ValueError(
            f"{OPTION} {name} must be a mapping of names to settings, such as"
            " {'wide': {'model.d_model': 256, 'model.d_ff': 1024}}"
        )
    try:
        _check_names([*found])
        return {own: _configuration(own, values, six) for own, values in found.items()}
    except ValueError as error:
        raise ValueError(f"{OPTION} {name}: {error}") from error


def file_label(name: str) -> str:
    """What `FILE.py:NAME` adds to a run folder's name."""
    file, _, wanted = name.rpartition(":")
    return f"{Path(file).stem}-{wanted}"


def _check_names(names: list[Any]) -> None:
    """Raises ValueError for what no folder, or not two of them on every disk, may be called."""
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"a configuration is called {name!r}: use up to 80 letters, digits and _ . + = -,"
                " a letter, digit or _ first, and more than digits"
            )
    folded, times = Counter(map(str.casefold, names)).most_common(1)[0]
    if times > 1:
        alike = [name for name in names if name.casefold() == folded]
        raise ValueError(f"{' and '.join(alike)} differ in case alone: call one of them otherwise")


def _configuration(
    name: str, values: Any, six: Mapping[str, TrialConfig]
) -> tuple[TrialConfig, Values]:
    """Raises ValueError where the values cannot be set, or the study means another by the name."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} is {values!r}: it must be a mapping of dotted paths to values")
    if "seed" in values:
        raise ValueError(f"{name} sets seed: use --seeds")
    try:
        config = six["baseline"].with_values(values)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: {error}") from error
    if config != six.get(name, config):
        raise ValueError(
            f"{name} is a configuration of the study, with other settings: call yours otherwise"
        )
    return config, values
