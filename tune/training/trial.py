"""One trial from its first step, or its checkpoint, to its result. No Ray in it."""

import math
import statistics
import time
import zipfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quarterhour.data.batches import Batches
from quarterhour.data.files import write_file
from quarterhour.data.tokens import TokenData
from quarterhour.model.sampling import PROMPTS, continue_tokens
from quarterhour.search_spaces.point import QUARTERS
from quarterhour.tune.ledger import TrialSpec, claimed, read_spec
from quarterhour.tune.machine import peak_memory_bytes, reset_peak_memory
from quarterhour.tune.run_folder import (
    CHECKPOINT,
    CONFIG,
    EVAL_LOSS,
    HELDOUT_LOSS,
    PREVIOUS_CHECKPOINT,
    TRAIN_LOSS,
    Row,
    Status,
    read_rows,
)
from quarterhour.tune.training.recorder import Recorder
from quarterhour.tune.training.sharing import SharedDevice
from quarterhour.tune.training.trainer import Stopwatch, Trainer

CHECKPOINT_SECONDS = 30.0
# A budget in seconds spends at most about this share of it on measuring the time of a step.
PROBE_SHARE = 0.02
PROBE_STEPS = 5
SAMPLE_TOKENS = 24


class Trial:
    """Trains `spec` in its folder; begun trials go on from their last checkpoint."""

    def __init__(self, spec: TrialSpec, tokens: TokenData, device: torch.device) -> None:
        self.tokens = tokens
        self.device = device
        self.shared = SharedDevice(device)
        self.batches = Batches(tokens, spec.config.data, spec.config.seed)
        self.spec = self._with_measured_steps(spec)
        self.config = self.spec.config
        self.trainer = Trainer(self.config, device)
        self._train_tokens = torch.from_numpy(tokens.train.astype(np.int32)).to(device)
        self.seconds = 0.0
        self._warning: str | None = None
        self.samples: list[dict[str, str]] = []
        reset_peak_memory(device)

    def _with_measured_steps(self, spec: TrialSpec) -> TrialSpec:
        """With a budget in seconds, the steps that fit in it: measured on a model thrown away."""
        budget = spec.config.budget
        if budget.steps or not budget.seconds:
            return spec
        begun = read_spec(spec.folder) if (spec.folder / CONFIG).exists() else spec
        if begun.config.budget.steps and begun.key == spec.key:
            return begun
        probed = {"budget.steps": PROBE_STEPS, "optim.schedule": "constant"}  # it may go on longer
        trainer = Trainer(spec.config.with_values(probed), self.device)
        begin = time.perf_counter()
        seconds: list[float] = []
        while len(seconds) < PROBE_STEPS or (
            time.perf_counter() - begin < PROBE_SHARE * budget.seconds
        ):
            stopwatch = Stopwatch(self.device)
            mark = stopwatch.mark()
            trainer.train_step(self._on_device(self.batches.batch_at(len(seconds))))
            stopwatch.span(mark)
            seconds += stopwatch.seconds()
        steps = max(QUARTERS, int(budget.seconds / statistics.median(seconds)))
        measured = budget.with_steps(steps)
        return replace(spec, config=replace(spec.config, budget=measured))

    def take_warning(self) -> str | None:
        """What has gone wrong since the last call without stopping the trial."""
        warning, self._warning = self._warning, None
        return warning

    def rows(self) -> Generator[Row]:
        """Train, and yield each row as soon as it is written; the result is there by the last.

        A loss that is not finite ends the trial as FAILED: training again would come to the same.
        Closed before its end, the trial can go on from there.
        """
        with claimed(self.spec):
            if not self.spec.result():
                with self.shared.taken():
                    yield from self._train()
            else:
                yield read_rows(self.spec.folder)[-1]

    def _train(self) -> Generator[Row]:
        self.spec.write_config()
        self._load_checkpoint()
        recorder = Recorder(self.spec, self.trainer.step)
        self._saved_at = time.monotonic()
        try:
            for end in self.config.budget.window_ends():
                if end <= self.trainer.step:
                    continue
                recorder.write(row := self._train_to(end))
                if math.isfinite(row.get("eval_loss", math.nan)):
                    recorder.write_samples(self.samples)
                if end == self.config.budget.trained_steps or not math.isfinite(row["train_loss"]):
                    break
                if time.monotonic() - self._saved_at > CHECKPOINT_SECONDS:
                    self._try_to_save_checkpoint(recorder)
                yield row
            self._finish(recorder)
            yield recorder.last_row
        except GeneratorExit:
            if not self.spec.result():
                self._try_to_save_checkpoint(recorder)
            raise
        finally:
            recorder.close()

    def _train_to(self, end: int) -> Row:
        """Train one window, up to `end` updates; its row, with an evaluation where one is due."""
        evaluates = self.config.budget.evaluates_at(end)
        trials_on_device = self.shared.trials()
        stopwatch = Stopwatch(self.device)
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        train_batch: Row = {}
        steps = range(self.trainer.step, end)
        batches = self._train_batches(steps)
        for step in steps:
            begin = stopwatch.mark()
            batch_BT = next(batches)
            measures = evaluates and step == end - 1
            if measures:
                train_batch = self._measure_train_batch(batch_BT)
                begin = stopwatch.mark()
            loss, norm = self.trainer.train_step(batch_BT, measure_layers=measures)
            stopwatch.span(begin)
            losses.append(loss)
            norms.append(norm)
        row = self._window_row(stopwatch.seconds(), torch.stack(losses), torch.stack(norms))
        row["trials_on_device"] = max(
            trials_on_device, self.shared.trials()
        )  # each slows the others
        if evaluates:
            return row | self._evaluate(train_batch)
        if end in self.config.budget.quarter_ends():
            begin = time.perf_counter()
            return row | self._heldout_metrics() | {"eval_seconds": time.perf_counter() - begin}
        return row

    def _train_batches(self, steps: Sequence[int]) -> Iterator[Tensor]:
        """Training batches [B, T + 1], gathered on the device from where all of them begin."""
        starts = np.stack([self.batches.starts_at(step) for step in steps])
        offsets_T = torch.arange(self.config.data.seq_len + 1, device=self.device)
        for starts_B in torch.from_numpy(starts).to(self.device):
            yield self._train_tokens[starts_B.unsqueeze(1) + offsets_T].long()

    def _window_row(self, seconds: list[float], losses: Tensor, norms: Tensor) -> Row:
        """The measures that every row has; nothing else in a window without evaluation waits."""
        self.seconds += sum(seconds)
        tokens_per_step = self.config.data.batch_size * self.config.data.seq_len
        tokens = self.trainer.step * tokens_per_step
        step_seconds = statistics.fmean(seconds)
        return {
            "step": self.trainer.step,
            "tokens": tokens,
            "epochs": tokens / len(self.tokens.train),
            "flops": tokens * self.config.model.flops_per_token(self.config.data.seq_len),
            "seconds": self.seconds,
            "window_steps": len(seconds),
            "train_loss": losses.mean().item(),
            "train_loss_last": losses[-1].item(),
            "train_loss_min": losses.min().item(),
            "grad_norm": norms[norms.isfinite()].mean().item(),  # fp16 skips the others
            "learning_rate": self.trainer.learning_rate,
            "step_seconds": step_seconds,
            "step_seconds_std": statistics.pstdev(seconds),
            "tokens_per_second": tokens_per_step / step_seconds,
            "peak_memory_bytes": peak_memory_bytes(self.device),
        }

    def _measure_train_batch(self, batch_BT: Tensor) -> Row:
        """The reference's training-batch measures: with the weights before the batch's update."""
        if self.device.type == "cuda":  # whose steps so far are no time of the evaluation
            torch.cuda.synchronize()
        begin = time.perf_counter()
        metrics, _ = self.trainer.metrics(batch_BT)
        row: Row = {f"train_batch_{name}": value for name, value in metrics.items()}
        return row | {"eval_seconds": time.perf_counter() - begin}

    def _evaluate(self, train_batch: Row) -> Row:
        """Both validation sets and the samples, after the update; the measures as a row."""
        begin = time.perf_counter()
        row = train_batch | self._leaky_metrics() | self._heldout_metrics()
        for layer, norm in enumerate(self.trainer.layer_grad_norms.tolist()):
            row[f"grad_norm_layer{layer:02d}"] = norm
        if math.isfinite(row["eval_loss"]):
            self.samples = self._continue_prompts()
        return row | {"eval_seconds": train_batch["eval_seconds"] + time.perf_counter() - begin}

    def _leaky_metrics(self) -> Row:
        """The reference's validation measures: means over batches, perplexity's too.

        `eval_calibration` has three lists by confidence in 15 equal bins: tokens, sums of their
        confidences, tokens predicted correctly.
        """
        batches = self.batches.leaky_validation(self.config.budget.eval_batches)
        measured = [self.trainer.metrics(self._on_device(batch)) for batch in batches]
        metrics = [of_batch for of_batch, _ in measured]
        row: Row = {
            f"eval_{name}": statistics.fmean(m[name] for m in metrics) for name in metrics[0]
        }
        tokens_K, confidence_K, correct_K = np.sum([bins_3K for _, bins_3K in measured], axis=0)
        bins = [tokens_K.astype(int), confidence_K, correct_K.astype(int)]
        return row | {"eval_calibration": [bin_K.tolist() for bin_K in bins]}

    def _heldout_metrics(self) -> Row:
        """Loss in nats a token, and in bits a byte, which does not depend on the tokenizer."""
        nats = 0.0
        for batch in self.batches.heldout():
            nats += self.trainer.loss(self._on_device(batch)) * batch[:, 1:].size
        manifest = self.tokens.manifest
        return {
            "heldout_loss": nats / (manifest.heldout_tokens - 1),
            "heldout_bits_per_byte": nats / math.log(2) / manifest.heldout_bytes,
        }

    def _on_device(self, batch: np.ndarray) -> Tensor:
        return torch.from_numpy(batch).to(self.device, non_blocking=True)

    def _try_to_save_checkpoint(self, recorder: Recorder) -> None:
        """A disk that is full now need not be at the trial's end, so training goes on."""
        try:
            self._save_checkpoint(recorder)
        except (OSError, RuntimeError) as error:  # torch tells of a full disk by the latter
            reason = str(error).splitlines()[0]
            self._warning = f"no checkpoint at step {self.trainer.step} could be written: {reason}"

    def _save_checkpoint(self, recorder: Recorder) -> None:
        """Write the checkpoint; the one before is kept, in case that this one gets damaged."""
        recorder.sync()
        state = {"trainer": self.trainer.state_dict(), "seconds": self.seconds}
        path = self.spec.folder / CHECKPOINT

        def write(temporary: Path) -> None:
            torch.save(state, temporary)
            if path.exists():
                path.replace(self.spec.folder / PREVIOUS_CHECKPOINT)

        write_file(path, write)
        self._saved_at = time.monotonic()

    def _load_checkpoint(self) -> None:
        """Go on from the newest checkpoint that can be read and whose rows are there."""
        steps = {row["step"] for row in read_rows(self.spec.folder)}
        for name in (CHECKPOINT, PREVIOUS_CHECKPOINT):
            path = self.spec.folder / name
            if not path.exists():
                continue
            try:
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip():  # torch does not look at the checksums
                        raise ValueError("its checksum is wrong")
                state = torch.load(path, map_location=self.device, weights_only=True)
                if state["trainer"]["step"] not in steps:
                    raise ValueError("its rows are missing")
                self.trainer.load_state_dict(state["trainer"])
                self.seconds = state["seconds"]
                return
            except Exception as error:  # what a damaged file raises is not foreseeable
                damage = " ".join(str(error).split())[:80]
                self._warning = f"{path} cannot be used, an earlier state is: {damage}"
                self.trainer = Trainer(self.config, self.device)

    def _finish(self, recorder: Recorder) -> None:
        """Write the result: last, since nothing is written to the folder after it."""
        row = recorder.last_row
        for name in (TRAIN_LOSS, EVAL_LOSS, HELDOUT_LOSS):
            if not math.isfinite(row.get(name, 0.0)):
                reason = f"{name} is {row[name]} after {row['step']} updates"
                recorder.write_ending(Status.FAILED)
                self.spec.write_result(Status.FAILED, row, reason=reason, diverged=True)
                return
        self._try_to_save_checkpoint(recorder)
        (self.spec.folder / PREVIOUS_CHECKPOINT).unlink(missing_ok=True)
        recorder.write_ending(Status.COMPLETE)
        self.spec.write_result(Status.COMPLETE, row)

    def _continue_prompts(self) -> list[dict[str, str]]:
        """The five prompts, and what the model continues them with."""
        tokenizer = self.tokens.tokenizer()
        continuations = continue_tokens(
            self.trainer.model,
            [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in PROMPTS],
            new_tokens=SAMPLE_TOKENS,
            seq_len=self.config.data.seq_len,
            seed=self.config.seed,
        )
        return [
            {"prompt": prompt, "continuation": tokenizer.decode(continuation)}
            for prompt, continuation in zip(PROMPTS, continuations, strict=True)
        ]
