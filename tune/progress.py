"""What a user sees while trials run: a bar for all, a line for each, or plain lines in a log."""

from collections import Counter
from typing import Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from quarterhour.tune.ledger import Result, TrialSpec
from quarterhour.tune.run_folder import Row, Status


class RowDisplay(Protocol):
    """Takes the rows of running trials."""

    def update(self, spec: TrialSpec, row: Row) -> None:
        """Show a trial's new row."""


class _TrialBars:
    """A bar for all trials together and one for each that runs."""

    def __init__(self, console: Console, description: str, total: float | None) -> None:
        self.console = console
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            speed_estimate_period=120,
        )
        self._all = self._bars.add_task(description, total=total, text="")

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def _show_all(self, completed: float, text: str) -> None:
        self._bars.update(self._all, completed=completed, text=text)

    def _show(self, spec: TrialSpec, row: Row) -> None:
        """Show a trial's new row on a line of its own."""
        budget = spec.config.budget
        if spec.label not in self._tasks:
            total = budget.seconds or budget.trained_steps
            self._tasks[spec.label] = self._bars.add_task(spec.label, total=total, text="")
        done = row["seconds"] if budget.seconds else row["step"]
        self._bars.update(self._tasks[spec.label], completed=done, text=_text(spec, row))
        for warning in row.get("warnings", ()):
            self.console.print(f"{spec.label}: {warning}", markup=False)

    def hide(self, spec: TrialSpec) -> None:
        """Remove a trial's line."""
        if spec.label in self._tasks:
            self._bars.remove_task(self._tasks.pop(spec.label))


def _text(spec: TrialSpec, row: Row) -> str:
    """What a trial's line says besides its name."""
    budget = spec.config.budget
    of = f" of {budget.seconds:g} s" if budget.seconds else f"/{budget.trained_steps:,}"
    return f"step {row['step']:>5,}{of}  train loss {row['train_loss']:.3f}"


class TrialsProgress(_TrialBars):
    """Progress of a list of trials in FLOPs, which trials of different sizes have in common."""

    def __init__(self, console: Console, todo: list[TrialSpec], n_done: int) -> None:
        super().__init__(console, "all trials", sum(spec.flops for spec in todo))
        self._n_trials = len(todo) + n_done
        self._n_ended = n_done
        self._flops: dict[str, int] = {}
        self._show_all(0, self._ended())

    def update(self, spec: TrialSpec, row: Row) -> None:
        """Show a trial's new row, and how it ended if that is its last."""
        self._show(spec, row)
        loss = row.get("heldout_loss")
        if not self.console.is_terminal and loss is not None:
            self.console.print(f"{spec.label:<20} {_text(spec, row)}  held-out loss {loss:.3f}")
        self._flops[spec.label] = row["flops"]
        result = spec.ending()
        if result:
            self._n_ended += 1
            if result.status is Status.FAILED:
                self.console.print(f"{spec.label}: FAILED, {result.reason}", markup=False)
        self._show_all(sum(self._flops.values()), self._ended())

    def _ended(self) -> str:
        return f"{self._n_ended} of {self._n_trials} trials ended"


class SearchProgress(_TrialBars):
    """Progress of a search towards its number of trials, if it has one, and its best so far."""

    def __init__(self, console: Console, trials: int | None) -> None:
        super().__init__(console, "search", trials)
        self._statuses: Counter[str] = Counter()

    def update(self, spec: TrialSpec, row: Row) -> None:
        """Show a trial's new row."""
        self._show(spec, row)

    def count(self, result: Result) -> None:
        """Count a trial that has ended."""
        self._statuses[result.status] += 1

    def end(self, spec: TrialSpec, result: Result, outcome: str, best: str) -> None:
        """Remove a trial's line; `outcome` and `best` say how it and the search now stand."""
        self.hide(spec)
        if not self.console.is_terminal:
            adopted = f"  adopted from {result.adopted_from}" if result.adopted_from else ""
            text = f"{spec.name} {result.status:<10} {spec.origin:<12} {result.reason or outcome}"
            self.console.print(f"{text}{adopted}", markup=False)
        counts = ", ".join(f"{count} {status}" for status, count in self._statuses.items())
        self._show_all(self._statuses.total(), f"{counts}; best {best}")
