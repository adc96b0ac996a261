"""What a run folder holds: its files, how a trial can end, and every column of a row.

Written down once, with the standard library alone, for all who write or read a run: the trial, the
search, TensorBoard and the analysis. run_reader.py reads it.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

# Raised when a reader of the version before would misread a folder.
FORMAT_VERSION = 1

# Of a run.
EXPERIMENT = "experiment.json"
LOCK, OWNER = ".lock", ".owner"
TABLES, REPORT = "tables", "report"
# Of a search.
STUDY, QUEUE, ELAPSED, FRESH_SEEDS = "study.journal", "queue", "elapsed.json", "fresh_seeds"
# Of a trial.
CONFIG, METRICS, SAMPLES, RESULT = "config.json", "metrics.jsonl", "samples.json", "result.json"
CHECKPOINT, PREVIOUS_CHECKPOINT = "checkpoint.pt", "checkpoint.previous.pt"
CHECKPOINT_BEFORE_DECAY = "checkpoint.before_decay.pt"
EVENTS = "events.out.tfevents.*"
ERROR = "error.txt"
# Beside the runs: which folder has a key.
CLAIMS = ".trials"

PROVENANCE = ("versions", "git_commit", "hardware")
"""What is told of where a trial was trained."""
BEFORE = "before"
"""Of a run that is older than its trials' own provenance: that of the run."""

TRIAL = ["configuration", "seed"]
"""What a trial of a run is known by; in a search a trial's number stands as its configuration."""

# Where people look for a setting: what matters most comes first, and after "", which stands for any
# other, what follows from the rest. A longer beginning of a name holds before a shorter one.
_SETTINGS = (
    *("optim.learning_rate", "data.batch_size", "data.seq_len", "model.d_model", "model.n_layers"),
    *("optim.", "data.", "model.", ""),
    *("model.n_heads", "model.d_ff", "model.vocab_size", "precision", "seed", "budget."),
)


def setting_place(path: str) -> int:
    """The place of a setting in tables, to sort by; those of one place stay as they are."""
    return _SETTINGS.index(max(filter(path.startswith, _SETTINGS), key=len))


def follows(path: str) -> bool:
    """Whether a setting is no choice of its own, but follows from others or the budget."""
    return setting_place(path) > setting_place("")


SAMPLER = "sampler"
"""The origin of a search's trial that nobody asked for."""

Row = dict[str, Any]


class Status(StrEnum):
    """How a trial stands.

    Without a result it is WAITING to begin, RUNNING, or STOPPED while no process trains its run.
    With one it is COMPLETE, FAILED by an error, PRUNED as unpromising, or INFEASIBLE: it does not
    fit in memory or budget.
    """

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"
    PRUNED = "PRUNED"
    INFEASIBLE = "INFEASIBLE"

    @property
    def ended(self) -> bool:
        """Whether a trial that stands so has a result."""
        return self not in (Status.WAITING, Status.RUNNING, Status.STOPPED)


Better = Literal["minimize", "maximize"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a row: its label for people, its unit, and which way it is better, if any is.

    With `of_machine` it depends on the machine, its clock or its load: equal trials may differ.
    """

    label: str
    unit: str = ""
    better: Better | None = None
    of_machine: bool = False

    @property
    def header(self) -> str:
        """Label and unit, as in "held-out loss (nats)"."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


# The columns that much of the code names.
TRAIN_LOSS, EVAL_LOSS, HELDOUT_LOSS = "train_loss", "eval_loss", "heldout_loss"
HELDOUT_BITS_PER_BYTE = "heldout_bits_per_byte"
EMA_HELDOUT_LOSS = "ema_heldout_loss"
TRIALS_ON_DEVICE, PEAK_MEMORY = "trials_on_device", "peak_memory_bytes"
CAPTURED = "captured"
TOKENS_PER_SECOND, STEP_SECONDS = "tokens_per_second", "step_seconds"
SPEEDS = (TOKENS_PER_SECOND, STEP_SECONDS)
"""Of a whole trial they are medians over its windows, any of which may have been disturbed."""
EVAL_CALIBRATION = "eval_calibration"
LAYER_GRAD_NORM = "grad_norm_layer"
"""Followed by a layer's number: the norm of the gradient of that layer's parameters."""


def _measures(prefix: str, of: str) -> dict[str, Column]:
    """The study's measures of one set of windows."""
    return {
        f"{prefix}_loss": Column(label=f"loss, {of}", unit="nats", better="minimize"),
        f"{prefix}_perplexity": Column(label=f"perplexity, {of}", better="minimize"),
        f"{prefix}_accuracy": Column(label=f"accuracy, {of}", better="maximize"),
        f"{prefix}_top5_accuracy": Column(label=f"top-5 accuracy, {of}", better="maximize"),
        f"{prefix}_confidence": Column(label=f"confidence, {of}"),
        f"{prefix}_entropy": Column(label=f"entropy, {of}", unit="nats"),
    }


COLUMNS: dict[str, Column] = {
    HELDOUT_LOSS: Column(label="held-out loss", unit="nats", better="minimize"),
    HELDOUT_BITS_PER_BYTE: Column(label="held-out bits a byte", unit="bits", better="minimize"),
    EMA_HELDOUT_LOSS: Column(
        label="held-out loss of averaged weights", unit="nats", better="minimize"
    ),
    "step": Column(label="optimizer step"),
    "tokens": Column(label="tokens", better="minimize"),
    "epochs": Column(label="passes over the corpus"),
    "flops": Column(label="training FLOPs", better="minimize"),
    "seconds": Column(label="time of training", unit="s", better="minimize", of_machine=True),
    "window_steps": Column(label="steps of the row's window"),
    TRAIN_LOSS: Column(label="training loss, window mean", unit="nats", better="minimize"),
    "train_loss_last": Column(label="training loss, last step", unit="nats", better="minimize"),
    "train_loss_min": Column(label="training loss, smallest", unit="nats", better="minimize"),
    "grad_norm": Column(label="gradient norm before clipping"),
    "learning_rate": Column(label="learning rate"),
    STEP_SECONDS: Column(label="step time", unit="s", better="minimize", of_machine=True),
    "step_seconds_std": Column(label="step time, deviation", unit="s", of_machine=True),
    TOKENS_PER_SECOND: Column(
        label="tokens a second", unit="tokens/s", better="maximize", of_machine=True
    ),
    PEAK_MEMORY: Column(label="peak memory", unit="bytes", better="minimize", of_machine=True),
    TRIALS_ON_DEVICE: Column(label="trials on the device", of_machine=True),
    CAPTURED: Column(label="every step replayed from a CUDA graph", of_machine=True),
    "eval_seconds": Column(label="time of the evaluation", unit="s", of_machine=True),
    **_measures("train_batch", "training batch"),
    **_measures("eval", "leaky validation"),
    EVAL_CALIBRATION: Column(label="calibration bins, leaky validation"),
}
"""Every column of a row but those of single layers, `grad_norm_layer00` and so on."""

OBJECTIVES: dict[str, Better] = {
    name: column.better
    for name, column in COLUMNS.items()
    if column.better and name != EMA_HELDOUT_LOSS  # which not every trial has
}
"""What a search can look for, and which way it is better."""


# The rung of early stopping that a row is on, by the quarters of its trial's steps that are done.
# A trial that is at its end is not judged.
RUNG_OF = {1: 1, 2: 2, 3: 2}
DONE = {1: "a quarter", 2: "half", 3: "three quarters"}


def trial_label(name: str, folder: Path, origin: str | None) -> str:
    """What a trial is called in its run: `baseline seed 0`, `0001 high_lr`, `0014 seed 2`.

    A trial of a search has a number, its origin where that says more, and its seed if that is new.
    """
    asked_by = "" if origin == SAMPLER else origin
    seed = folder.name.replace("seed", "seed ") if folder.name.startswith("seed") else ""
    return " ".join(filter(None, (name, asked_by, seed)))


def counted(number: int, noun: str) -> str:
    """`1 trial`, `1,024 trials`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
