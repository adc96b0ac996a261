"""A trial under Ray Tune: a step of the Trainable trains windows and reports the last row."""

import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ray import tune as ray_tune

from quarterhour.data.files import write_text
from quarterhour.data.tokens import TokenData
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.machine import cap_gpu_memory, keep_freed_memory, reached_gpu_cap
from quarterhour.tune.places import Resources
from quarterhour.tune.run_folder import CONFIG, ERROR, Status
from quarterhour.tune.run_reader import read_rows
from quarterhour.tune.training.trial import Trial

# A round trip to Tune keeps the trial from training for as long as a short window takes.
REPORT_SECONDS = 1.0
PAUSE = "pause"  # seconds that a trial waits before it goes on, beside its values


def to_param_space(spec: TrialSpec) -> dict[str, Any]:
    """A trial as the plain values that Tune hands on."""
    return {
        "name": spec.name,
        "config": asdict(spec.config),
        "data_fingerprint": spec.data_fingerprint,
        "folder": str(spec.folder.absolute()),  # another machine may have another folder to be in
        "origin": spec.origin,
        "provenance": dict(spec.provenance),
        "sharing": spec.sharing,
    }


def from_param_space(values: dict[str, Any]) -> TrialSpec:
    """The trial whose `to_param_space` gave `values`."""
    return TrialSpec(
        name=values["name"],
        config=TrialConfig.from_dict(values["config"]),
        data_fingerprint=values["data_fingerprint"],
        folder=Path(values["folder"]),
        origin=values["origin"],
        provenance=values["provenance"],
        sharing=values["sharing"],
    )


def write_error(spec: TrialSpec, error: str) -> None:
    """Leave an error's traceback in the trial's folder, where its reason is looked for."""
    spec.folder.mkdir(parents=True, exist_ok=True)
    write_text(spec.folder / ERROR, error)


def end_as_failed(spec: TrialSpec, reason: str | None = None) -> None:
    """Give a trial without a result one, even if it never began."""
    if not spec.ending():
        if not (spec.folder / CONFIG).exists():
            spec.write_config()
        spec.write_failure(reason)


class TrialTrainable(ray_tune.Trainable):
    """Keeps its state in the trial's own folder, so it never saves a checkpoint through Ray."""

    def setup(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        config: dict[str, Any],
        tokens_folder: str,
        resources: Resources,
    ) -> None:
        """Take up the trial `config["trial"]`; it begins with its first step."""
        self._spec = from_param_space(config["trial"])
        self._trial: Trial | None = None
        time.sleep(config.get(PAUSE, 0.0))
        with self._errors_written():
            torch.set_num_threads(resources.threads)
            keep_freed_memory()
            if resources.device == "cuda":
                cap_gpu_memory(resources.for_trial(self._spec.config)["gpu"])
            self._spec.clear_error()
            self._tokens = TokenData(Path(tokens_folder))
            self._device = torch.device(resources.device)

    def step(self) -> dict[str, Any]:
        """Train some windows. The trial is done when its result is written.

        One that needs more memory than it gets is INFEASIBLE. Where others have taken a GPU's
        memory, the error is raised, and the trial is tried again.
        """
        try:
            with self._errors_written():
                return self._train_windows()
        except (torch.OutOfMemoryError, MemoryError) as error:
            if isinstance(error, torch.OutOfMemoryError) and not reached_gpu_cap(error):
                raise
            self._spec.clear_error()
            rows = read_rows(self._spec.folder)
            reason = f"out of memory: {str(error).splitlines()[0]}"
            self._spec.write_result(Status.INFEASIBLE, rows[-1] if rows else {}, reason=reason)
            return {"done": True}

    @contextmanager
    def _errors_written(self) -> Generator[None]:
        """Leave the traceback of an error in the trial's folder, where its reason is looked for."""
        try:
            yield
        except Exception:
            write_error(self._spec, traceback.format_exc())
            raise

    def _train_windows(self) -> dict[str, Any]:
        """The row of an evaluation, of the end, or after a second the newest, for Tune to know."""
        if not self._trial:
            self._trial = Trial(self._spec, self._tokens, self._device)
            self._rows = self._trial.rows()
        begin, row, done = time.monotonic(), dict[str, Any](), False
        reported = self._trial.warnings
        while not done and "heldout_loss" not in row:
            row = next(self._rows)
            done = self._spec.result() is not None
            if time.monotonic() - begin > REPORT_SECONDS:
                break
        return row | {
            "done": done,
            "warnings": [text for text in self._trial.warnings if text not in reported],
        }

    def cleanup(self) -> None:
        """Close the trial's files; one that has not ended saves its state."""
        if self._trial:
            self._rows.close()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial in this process, which spares its start."""
        self.cleanup()
        self.setup(new_config)  # pyright: ignore
        return True
