"""A trial of an earlier run as a starting point: its settings, and the command that trains it."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quarterhour.search_spaces.point import NUMERICS_VERSION, TrialConfig
from quarterhour.search_spaces.profiles import Profile, profile_named
from quarterhour.search_spaces.reference import reference_configurations, rescaled
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

    @property
    def label(self) -> str:
        """Its configuration's name in another run; a search's trials have only numbers."""
        return f"{self.run.name}-{self.spec.name}" if self.spec.name.isdigit() else self.spec.name

    def config_at(self, profile: Profile) -> TrialConfig:
        """Its configuration at a profile's size; the seed is the other run's to choose."""
        return replace(rescaled(self.spec.config, self.profile, profile), seed=0)

    @property
    def vocabulary(self) -> dict[str, Any]:
        """The number of the model's entries, where that is not the tokenizer's own."""
        known, own = self.experiment["data"]["vocab_size"], self.spec.config.model.vocab_size
        return {} if own == known else {"model.vocab_size": own}

    def remarks(self, target: Profile, data_fingerprint: str) -> list[str]:
        """What differs where its configuration is trained at another size, or on other data."""
        source, said = self.profile, list[str]()
        if target.name != source.name:
            before = self.config_at(source).values()
            after = self.config_at(target).values()
            changed = [
                f"{path} {before[path]} → {after[path]}"
                for path in before
                if before[path] != after[path]
            ]
            kept = [
                f"{path} {value}"
                for path, value in before.items()
                if value == after[path] != source.baseline.values()[path]
            ]
            said += [f"from profile {source.name} to {target.name}: {', '.join(changed)}"]
            said += [f"carried over as it is: {', '.join(kept)}"] if kept else []
        if self.spec.data_fingerprint != data_fingerprint:
            said.append(
                f"it was trained on other data: fingerprint {self.spec.data_fingerprint}, and"
                f" this is {data_fingerprint}"
            )
        if (numerics := self.experiment.get("numerics_version")) != NUMERICS_VERSION:
            said.append(
                f"it was trained by version {numerics} of the numerics, and this is"
                f" {NUMERICS_VERSION}: equal settings give other numbers"
            )
        return [f"{self.spec.folder}: {remark}" for remark in said]

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
