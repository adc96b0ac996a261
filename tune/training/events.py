"""A trial's TensorBoard events, in its own folder: rows, samples, hyperparameters, its ending."""

# The generated modules of protocol buffers get their names when they are imported.
# pyright: reportAttributeAccessIssue=false

import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch.utils.tensorboard.summary import custom_scalars, text

from quarterhour.search_spaces.reference import SIX
from quarterhour.tune.foreign import is_plain_file
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.run_folder import (
    EMA_HELDOUT_LOSS,
    EVAL_LOSS,
    EVENTS,
    HELDOUT_BITS_PER_BYTE,
    HELDOUT_LOSS,
    LAYER_GRAD_NORM,
    PEAK_MEMORY,
    TOKENS_PER_SECOND,
    TRAIN_LOSS,
    Row,
    Status,
    follows,
    setting_place,
)
from quarterhour.tune.run_reader import read_experiment, read_rows, run_of
from quarterhour.tune.training.event_file import EventFile

TAGS = {
    TRAIN_LOSS: "loss/train",
    EVAL_LOSS: "loss/eval",
    HELDOUT_LOSS: "loss/heldout",
    HELDOUT_BITS_PER_BYTE: "loss/heldout_bits_per_byte",
    EMA_HELDOUT_LOSS: "loss/heldout_of_averaged_weights",
    "train_batch_accuracy": "accuracy/train_batch",
    "eval_accuracy": "accuracy/eval",
    "train_batch_top5_accuracy": "accuracy/train_batch_top5",
    "eval_top5_accuracy": "accuracy/eval_top5",
    "eval_confidence": "calibration/eval_confidence",
    "eval_entropy": "calibration/eval_entropy",
    "learning_rate": "optimization/learning_rate",
    "grad_norm": "optimization/grad_norm",
    TOKENS_PER_SECOND: "throughput/tokens_per_second",
    "step_seconds": "throughput/step_seconds",
    PEAK_MEMORY: "memory/peak_bytes",
}
# A number, since only numbers can change while TensorBoard runs.
RUNNING = 0
STATUS_TAG = "status"
STATUS_NUMBERS = {Status.COMPLETE: 1, Status.PRUNED: 2, Status.FAILED: 3, Status.INFEASIBLE: 4}
# Of all windows until the last evaluation. The curve's last point is that of one window.
MEDIAN_SPEED_TAG = "throughput/median_tokens_per_second"
# The measures in the table of hyperparameters, by tag; it shows the first five.
COMPARED = {
    TAGS[HELDOUT_LOSS]: HELDOUT_LOSS,
    STATUS_TAG: "status",
    TAGS[EVAL_LOSS]: EVAL_LOSS,
    TAGS[TRAIN_LOSS]: TRAIN_LOSS,
    MEDIAN_SPEED_TAG: TOKENS_PER_SECOND,
    TAGS[PEAK_MEMORY]: PEAK_MEMORY,
}
ORIGIN = "origin"
TICKED = 5

# Of trials that are called as one of the six: a page of theirs can only be told by its tags.
SIX_TAG, SIX_BY_TOKENS_TAG = "six_configurations/heldout", "six_configurations/heldout_by_tokens"

LAYOUT = {
    "Six configurations alone": {
        "held-out loss": ["Multiline", [f"{SIX_TAG}$"]],
        "held-out loss by tokens": ["Multiline", [f"{SIX_BY_TOKENS_TAG}$"]],
    },
    "All trials": {
        "held-out loss": ["Multiline", ["loss/heldout$"]],
        "held-out loss by tokens": ["Multiline", ["loss_by_tokens/heldout$"]],
        "training loss": ["Multiline", ["loss/train$"]],
        "training loss by tokens": ["Multiline", ["loss_by_tokens/train$"]],
    },
    "Held-out against leaky": {
        "loss, held-out and leaky": ["Multiline", ["loss/heldout$", "loss/eval$"]],
        "by tokens": ["Multiline", ["loss_by_tokens/heldout$", "loss_by_tokens/eval$"]],
    },
}


def tag_of(name: str) -> str | None:
    """TensorBoard's tag of a row's field; None for a field that is only in `metrics.jsonl`."""
    if name.startswith(LAYER_GRAD_NORM):
        return name.replace("grad_norm_", "gradients/")
    return TAGS.get(name)


def by_tokens(tag: str) -> str:
    """The tag of a loss by tokens instead of steps."""
    return tag.replace("loss/", "loss_by_tokens/")


class TrialEvents:
    """Writes a trial's events, and empties the files of events that its folder has.

    The hyperparameters come first: TensorBoard's table shows the trial as running from then on.
    Raises ValueError where the run's `experiment.json` is damaged or of a newer version.
    """

    def __init__(self, spec: TrialSpec) -> None:
        for path in spec.folder.glob(EVENTS):
            # TensorBoard's slower reader waits for ever for a removed one. A file of two names may
            # be another trial's.
            if is_plain_file(path) and path.stat().st_nlink == 1:
                os.truncate(path, 0)
            else:
                path.unlink()
        self._is_of_six = spec.name in SIX
        self._speeds: list[float] = []
        self._file = EventFile(spec.folder)
        # A reader that has followed the earlier files drops what it read there.
        self._file.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step=0)
        self._file.add_summary(_experiment(spec))
        self._file.add_summary(_session_start(_hyperparameters(spec)))
        self._file.add_summary(custom_scalars(LAYOUT))
        self._file.add_summary(_scalars({STATUS_TAG: RUNNING}), 0)

    def add_row(self, row: Row) -> None:
        """Add a row's measures by step, and its losses by tokens too."""
        tagged = {tag: row[name] for name in row if (tag := tag_of(name)) and row[name] is not None}
        losses = {by_tokens(tag): value for tag, value in tagged.items() if tag.startswith("loss/")}
        if self._is_of_six and row.get(HELDOUT_LOSS) is not None:
            tagged[SIX_TAG] = losses[SIX_BY_TOKENS_TAG] = row[HELDOUT_LOSS]
        self._speeds += [row[TOKENS_PER_SECOND]] if row.get(TOKENS_PER_SECOND) else []
        if self._speeds and EVAL_LOSS in row:
            tagged[MEDIAN_SPEED_TAG] = statistics.median(self._speeds)
        self._file.add_summary(_scalars(tagged), row["step"])
        self._file.add_summary(_scalars(losses), row["tokens"])

    def add_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Add the continuations of the prompts after `step` updates."""
        # Indented text is shown as it is, so a continuation cannot be taken for markup.
        shown = [f"**{s['prompt']}** …\n\n{_indented(s['continuation'])}" for s in samples]
        self._file.add_summary(text("samples", "\n".join(shown)), step)

    def add_ending(self, status: Status, step: int) -> None:
        """Add how the trial ended, after `step` updates."""
        _add_ending(self._file, status, step)

    def flush(self) -> None:
        """Make all that was added visible to readers."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def record_ending(folder: Path, status: Status) -> None:
    """Add how a trial ended after its process did, in a new file beside its events.

    Raises ValueError where its rows are damaged.
    """
    rows = read_rows(folder)
    file = EventFile(folder)
    _add_ending(file, status, rows[-1]["step"] if rows else 0)
    file.close()


def _add_ending(file: EventFile, status: Status, step: int) -> None:
    failed = status is Status.FAILED
    info = plugin_data_pb2.SessionEndInfo(
        status=api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS,
        end_time_secs=time.time(),
    )
    data = plugin_data_pb2.HParamsPluginData(session_end_info=info)
    file.add_summary(_hparams(metadata.SESSION_END_INFO_TAG, data))
    file.add_summary(_scalars({STATUS_TAG: STATUS_NUMBERS[status]}), step)


def _hyperparameters(spec: TrialSpec) -> dict[str, Any]:
    """What the table has of a trial, beside its measures. Where no search has made it, its origin
    is its name."""
    values = {ORIGIN: spec.origin or spec.name} | spec.config.values()
    # None would turn a column of numbers into one of strings.
    return {path: value for path, value in values.items() if value is not None}


def _session_start(hyperparameters: Mapping[str, Any]) -> Summary:
    info = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for path, value in hyperparameters.items():
        if isinstance(value, str):
            info.hparams[path].string_value = value
        elif isinstance(value, bool):
            info.hparams[path].bool_value = value
        else:
            info.hparams[path].number_value = value
    data = plugin_data_pb2.HParamsPluginData(session_start_info=info)
    return _hparams(metadata.SESSION_START_INFO_TAG, data)


def _experiment(spec: TrialSpec) -> Summary:
    """The table's columns; TensorBoard takes one trial's columns for all trials."""
    domains = _domains(spec.folder)
    infos = [
        _hyperparameter(path, value, domains.get(path, ()))
        for path, value in _hyperparameters(spec).items()
    ]
    experiment = api_pb2.Experiment(
        time_created_secs=time.time(),
        hparam_infos=arranged(infos),
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=name)
            for tag, name in COMPARED.items()
        ],
    )
    data = plugin_data_pb2.HParamsPluginData(experiment=experiment)
    return _hparams(metadata.EXPERIMENT_TAG, data)


def arranged(infos: Iterable[api_pb2.HParamInfo]) -> list[api_pb2.HParamInfo]:
    """The columns as people look for them. The table begins with those that are said to differ, and
    ticks five: no others are, and none that follows from others."""
    columns = sorted(infos, key=lambda info: setting_place(info.name))
    chosen = [info.name for info in columns if info.differs and not follows(info.name)]
    for info in columns:
        info.differs = info.name in chosen[:TICKED]
    return columns


def _hyperparameter(path: str, value: Any, domain: Sequence[Any]) -> api_pb2.HParamInfo:
    """A column. Trials outside a domain are not shown, so one that is not known is not told."""
    info = api_pb2.HParamInfo(name=path, type=api_pb2.DATA_TYPE_FLOAT64, differs=len(domain) > 1)
    if isinstance(value, str | bool):
        is_text = isinstance(value, str)
        info.type = api_pb2.DATA_TYPE_STRING if is_text else api_pb2.DATA_TYPE_BOOL
        if domain:
            info.domain_discrete.extend(domain)
    elif domain:
        info.domain_interval.min_value = domain[0]
        info.domain_interval.max_value = domain[-1]
    return info


def _domains(folder: Path) -> dict[str, list[Any]]:
    """The values that each hyperparameter takes in the run, by its `experiment.json`."""
    run = run_of(folder)
    return read_experiment(run).get("domains", {}) if run else {}


def _hparams(tag: str, data: plugin_data_pb2.HParamsPluginData) -> Summary:
    details = metadata.create_summary_metadata(data)
    return Summary(value=[Summary.Value(tag=tag, metadata=details, tensor=metadata.NULL_TENSOR)])


def _scalars(values: Mapping[str, float]) -> Summary:
    return Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in values.items()])


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())
