"""A trial of an earlier run as a starting point: its settings, and the command that trains it."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quarterhour.search_spaces.profiles import Profile, profile_named
from quarterhour.search_spaces.reference import reference_configurations
from quarterhour.tune.ledger import TrialSpec, read_spec
from quarterhour.tune.run_folder import CONFIG
from quarterhour.tune.run_reader import check_names, read_experiment, run_of


@dataclass(frozen=True, kw_only=True)
class PastTrial:
    """A trial in its folder, and `experiment`: what ran there, on which data."""

    spec: TrialSpec
    run: Path
    experiment: Mapping[str, Any]

    @property
    def profile(self) -> Profile:
        """The profile that its settings stand on."""
        return profile_named(self.experiment["profile"])

    def command(self) -> str:
        """The shell command that trains it on any machine with the same corpus and tokenizer."""
        data, config = self.experiment["data"], self.spec.config
        six = reference_configurations(self.profile, self.experiment["protocol"])
        name = self.spec.name if self.spec.name in six else "baseline"
        given = {
            "profile": self.profile.name,
            "protocol": self.experiment["protocol"],
            "corpus": data["corpus"],
            "tokenizer": data["tokenizer"],
        }
        known = six[name].values() | {"model.vocab_size": data["vocab_size"]}
        words = [word for option, value in given.items() for word in (f"--{option}", value)]
        for path, value in config.values().items():
            if value != known[path]:
                words += ["--set", f"{path}={value}"]
        return shlex.join(["quarterhour", "run", name, *words])


def read_past_trial(folder: Path) -> PastTrial:
    """The trial of a folder, which lies in its run's.

    Raises ValueError where it is no such folder, and DamagedError where it cannot be read.
    """
    place = folder.absolute()
    run = run_of(place)
    spec = read_spec(folder) if run and (folder / CONFIG).exists() else None
    if not (run and spec and spec.name in (place.name, place.parent.name)):
        raise ValueError(
            f"{folder} is no trial's folder in its run's: give one such as runs/search/0014 or"
            " runs/grid/baseline/seed0"
        )
    experiment = read_experiment(run)
    data = ("data.corpus", "data.tokenizer", "data.tokenizer_hash", "data.vocab_size")
    check_names(run, experiment, "profile", "protocol", *data)
    return PastTrial(spec=spec, run=run, experiment=experiment)
