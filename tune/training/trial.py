"""One trial from its first step, or its checkpoint, to its result. No Ray in it."""

import functools
import math
import statistics
from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from quarterhour.data.batches import Batches
from quarterhour.data.tokens import TokenData
from quarterhour.tune.ledger import TrialSpec, claimed
from quarterhour.tune.machine import compute_capability, peak_memory_bytes, reset_peak_memory
from quarterhour.tune.run_folder import (
    CAPTURED,
    EVAL_LOSS,
    HELDOUT_LOSS,
    PEAK_MEMORY,
    TOKENS_PER_SECOND,
    TRAIN_LOSS,
    TRIALS_ON_DEVICE,
    Row,
    Status,
)
from quarterhour.tune.run_reader import provenance, read_rows
from quarterhour.tune.training.checkpoint import Checkpoints
from quarterhour.tune.training.evaluation import (
    Sample,
    evaluate,
    evaluate_heldout,
    measure_train_batch,
)
from quarterhour.tune.training.memory import keeps_scores
from quarterhour.tune.training.probe import with_measured_steps
from quarterhour.tune.training.recorder import Recorder
from quarterhour.tune.training.sharing import SharedDevice
from quarterhour.tune.training.trainer import Stopwatch, Trainer


class Trial:
    """Trains `spec` in its folder; a trial that has begun goes on from its last checkpoint.

    A budget in seconds is measured first, see `with_measured_steps` for what that raises. Raises
    ValueError where the corpus is too small for one batch, and torch.OutOfMemoryError or
    MemoryError where the model does not fit.
    """

    def __init__(self, spec: TrialSpec, tokens: TokenData, device: torch.device) -> None:
        self.device = device
        self.shared = SharedDevice(device)
        self.batches = Batches(tokens, spec.config.data, spec.config.seed)
        self.spec = with_measured_steps(spec, self.batches, device)
        self.config = self.spec.config
        self.trainer = Trainer(self.config, device)
        self.checkpoints = Checkpoints(self.spec.folder)
        self.seconds = 0.0
        self._gpu_tokens = None  # on a CPU all trials share the pages of a file
        if device.type != "cpu":
            self._gpu_tokens = torch.from_numpy(tokens.train.astype(np.int32)).to(device)
        reset_peak_memory(device)

    @property
    def warnings(self) -> list[str]:
        """What is not as it should be, without stopping the trial."""
        return [*self._slow_attention(), *self.checkpoints.warnings, *self.trainer.warnings]

    def _slow_attention(self) -> list[str]:
        if self.device.type == "cpu":
            return []
        model, precision = self.config.model, self.config.precision
        if not keeps_scores(self.config, compute_capability(self.device.type)):
            return []
        return [
            f"this GPU has no attention kernel for heads of {model.d_head} numbers in {precision}:"
            " the trial is slower, and keeps the scores of all pairs of tokens"
        ]

    def rows(self) -> Generator[Row]:
        """Train, and yield each row as soon as it is written; the result is there by the last.

        A loss that is not finite ends the trial as FAILED: training again would give the same.
        Closed before its end, the trial goes on from there next time. An error leaves no result
        either: ValueError for a damaged file in its folder, OSError for a row that cannot be
        written, torch.OutOfMemoryError or MemoryError.
        """
        with claimed(self.spec):
            if not self.spec.result():
                with self.shared.taken():
                    yield from self._train()
            else:
                yield read_rows(self.spec.folder)[-1]

    def _train(self) -> Generator[Row]:
        self.trainer, self.seconds = self.checkpoints.load(self.trainer)
        self.spec.write_config(provenance(self.spec.folder) if self.trainer.step else ())
        recorder = Recorder(self.spec, self.trainer.step)
        try:
            for end in self.config.budget.window_ends():
                if end <= self.trainer.step:
                    continue
                row, samples = self._train_to(end)
                recorder.write(row)
                if samples:
                    recorder.write_samples(samples)
                if end == self._last_before_decay:
                    self.checkpoints.save_before_decay(self.trainer, self.seconds, recorder)
                if end == self.config.budget.trained_steps or not math.isfinite(row[TRAIN_LOSS]):
                    break
                if self.checkpoints.due:
                    self._save(recorder)
                yield row
            self._finish(recorder)
            yield recorder.last_row
        except GeneratorExit:
            if not self.spec.result():
                self._save(recorder)
            raise
        finally:
            recorder.close()

    @functools.cached_property
    def _last_before_decay(self) -> int | None:
        """The updates of the last row before the decay; None where the last row's state is it."""
        budget = self.config.budget
        full = self.config.optim.full_rate_steps(budget.steps)
        if not self.config.optim.extendable or full >= budget.trained_steps:
            return None
        return max((end for end in budget.window_ends() if end <= full), default=None)

    def _train_to(self, end: int) -> tuple[Row, list[Sample]]:
        """Train one window, up to `end` updates; its row and samples, evaluated where it is due."""
        evaluates = self.config.budget.evaluates_at(end)
        trials_on_device, captured = self.shared.trials(), self.trainer.captured
        row, train_batch = self._train_window(range(self.trainer.step, end), evaluates)
        # Others that began or ended meanwhile have slowed this one too.
        row[TRIALS_ON_DEVICE] = max(trials_on_device, self.shared.trials())
        row[CAPTURED] = captured
        if evaluates:
            evaluation, samples = evaluate(self.trainer, self.batches, train_batch)
            return row | evaluation, samples
        if end in self.config.budget.quarter_ends():
            row |= evaluate_heldout(self.trainer, self.batches)
        return row, []

    def _train_window(self, steps: range, measures_last: bool) -> tuple[Row, Row]:
        """Make these updates; their row, and the measures of the last batch before its update."""
        stopwatch = Stopwatch(self.device)
        updates: list[tuple[Tensor, Tensor]] = []
        train_batch: Row = {}
        batches = train_batches(self.batches, self._gpu_tokens, steps)
        for step in steps:
            begin = stopwatch.mark()
            batch_BT = next(batches)
            measures = measures_last and step == steps[-1]
            if measures:
                train_batch = measure_train_batch(self.trainer, batch_BT)
                begin = stopwatch.mark()
            updates.append(self.trainer.train_step(batch_BT, measure_layers=measures))
            stopwatch.span(begin)
        seconds = stopwatch.seconds()
        self.seconds += sum(seconds)
        losses, norms = map(torch.stack, zip(*updates, strict=True))
        return self._window_row(seconds, losses, norms), train_batch

    def _window_row(self, seconds: list[float], losses: Tensor, norms: Tensor) -> Row:
        """The measures that every row has; a window without evaluation waits only for them."""
        tokens_per_step = self.config.data.batch_size * self.config.data.seq_len
        tokens = self.trainer.step * tokens_per_step
        step_seconds = statistics.fmean(seconds)
        return {
            "step": self.trainer.step,
            "tokens": tokens,
            "epochs": tokens / len(self.batches.tokens.train),
            "flops": tokens * self.config.model.flops_per_token(self.config.data.seq_len),
            "seconds": self.seconds,
            "window_steps": len(seconds),
            TRAIN_LOSS: losses.mean().item(),
            "train_loss_last": losses[-1].item(),
            "train_loss_min": losses.min().item(),
            "grad_norm": norms[norms.isfinite()].mean().item(),  # fp16 skips the others
            "learning_rate": self.trainer.learning_rate,
            "step_seconds": step_seconds,
            "step_seconds_std": statistics.pstdev(seconds),
            TOKENS_PER_SECOND: tokens_per_step / step_seconds,
            PEAK_MEMORY: peak_memory_bytes(self.device),
        }

    def _save(self, recorder: Recorder) -> None:
        self.checkpoints.save(self.trainer, self.seconds, recorder)

    def _finish(self, recorder: Recorder) -> None:
        """Write the result: last, since nobody writes to the folder after it."""
        row = recorder.last_row
        for name in (TRAIN_LOSS, EVAL_LOSS, HELDOUT_LOSS):
            if not math.isfinite(row.get(name, 0.0)):
                reason = f"{name} is {row[name]} after {row['step']} updates"
                recorder.write_ending(Status.FAILED)
                self.spec.write_result(Status.FAILED, row, reason=reason, diverged=True)
                return
        self._save(recorder)
        self.checkpoints.drop_previous()
        recorder.write_ending(Status.COMPLETE)
        self.spec.write_result(Status.COMPLETE, row)


def train_batches(
    batches: Batches, tokens: Tensor | None, steps: Sequence[int]
) -> Iterator[Tensor]:
    """The training batches [B, T + 1] of `steps`, gathered where all training `tokens` lie.

    Where their windows begin is copied there once for all of them. Without `tokens` they are read
    from the file that all trials share.
    """
    if tokens is None:
        yield from (torch.from_numpy(batches.batch_at(step)) for step in steps)
        return
    starts = np.stack([batches.starts_at(step) for step in steps])
    offsets_T = torch.arange(batches.config.seq_len + 1, device=tokens.device)
    for starts_B in torch.from_numpy(starts).to(tokens.device):
        yield tokens[starts_B.unsqueeze(1) + offsets_T].long()
