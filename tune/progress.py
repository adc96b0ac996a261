"""What a user sees while trials run: a bar for all, a line for each, or plain lines in a log."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tune.ledger import Row, Status, TrialSpec


class TrialsProgress:
    """Progress of trials in FLOPs, which trials of different sizes have in common."""

    def __init__(self, console: Console, todo: list[TrialSpec], n_done: int) -> None:
        self._console = console
        self._specs = {spec.label: spec for spec in todo}
        self._n_trials = len(todo) + n_done
        self._n_ended = n_done
        self._flops: dict[str, int] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            speed_estimate_period=120,
        )
        total = sum(spec.flops for spec in todo)
        self._all = self._bars.add_task("all trials", total=total, text=self._ended())

    def __enter__(self) -> "TrialsProgress":
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, label: str, row: Row) -> None:
        """Show a trial's new row."""
        spec = self._specs[label]
        last_step = spec.config.budget.last_step
        self._flops[label] = row["flops"]
        loss = row.get("heldout_loss")
        text = f"step {row['step']:>5,}/{last_step:,}  train loss {row['train_loss']:.3f}"
        if not self._console.is_terminal and loss is not None:
            self._console.print(f"{label:<20} {text}  held-out loss {loss:.3f}")
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label, total=last_step, text="")
        self._bars.update(self._tasks[label], completed=row["step"], text=text)
        self._bars.update(self._all, completed=sum(self._flops.values()), text=self._ended())

    def end(self, label: str) -> None:
        """Count a trial as ended and say how."""
        self._n_ended += 1
        result = self._specs[label].result()
        if result and result.status is Status.FAILED:
            self._console.print(f"{label}: FAILED, {result.reason}")
        self._bars.update(self._all, text=self._ended())

    def _ended(self) -> str:
        return f"{self._n_ended} of {self._n_trials} trials ended"
