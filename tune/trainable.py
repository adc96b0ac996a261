"""A trial under Ray Tune: each step of the Trainable trains one window and reports its row."""

import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ray import tune as ray_tune

from data.files import write_text
from data.tokens import TokenData
from search_spaces.point import TrialConfig
from tune.ledger import TrialSpec
from tune.resources import Resources, keep_freed_memory
from tune.trial import Trial


def to_param_space(spec: TrialSpec) -> dict[str, Any]:
    """A trial as the plain values that Tune hands on."""
    return {
        "name": spec.name,
        "config": asdict(spec.config),
        "data_fingerprint": spec.data_fingerprint,
        "folder": str(spec.folder),
    }


def from_param_space(values: dict[str, Any]) -> TrialSpec:
    """The trial whose `to_param_space` gave `values`."""
    return TrialSpec(
        name=values["name"],
        config=TrialConfig.from_dict(values["config"]),
        data_fingerprint=values["data_fingerprint"],
        folder=Path(values["folder"]),
    )


class TrialTrainable(ray_tune.Trainable):
    """Keeps its state in the trial's own folder, so it never saves a checkpoint through Ray."""

    def setup(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, config: dict[str, Any], tokens_folder: str, resources: Resources
    ) -> None:
        """Take up the trial `config["trial"]`."""
        torch.set_num_threads(resources.threads)
        keep_freed_memory()
        self._spec = from_param_space(config["trial"])
        trial = Trial(
            self._spec,
            TokenData(Path(tokens_folder)),
            torch.device(resources.device),
            trials_on_device=config["trials_on_device"],
        )
        self._rows = trial.rows()

    def step(self) -> dict[str, Any]:
        """Train one window. The trial is done when its result is written."""
        try:
            row = next(self._rows)
        except Exception:
            write_text(self._spec.folder / "error.txt", traceback.format_exc())
            raise
        return row | {"done": self._spec.result() is not None}

    def cleanup(self) -> None:
        """Close the trial's files."""
        self._rows.close()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial in this process, which spares its start."""
        self.cleanup()
        self.setup(new_config)  # pyright: ignore
        return True
