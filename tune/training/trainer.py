"""What a trial trains: one update, its measurements, the state to go on from.

Shapes: B batch, T time, N = B · T tokens, D d_model, K bins of calibration. Nothing in the trainer
waits for the device, but a GPU's first step; what does not fit there raises torch.OutOfMemoryError.
"""

import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quarterhour.model.decoder import Decoder
from quarterhour.model.loss import mean_cross_entropy, token_loss, token_metrics
from quarterhour.model.optim import build_optimizer
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.tune.training.capture import CapturedStep, on_side_stream

# Public under no other names.
lerp_, divide, copy_ = (getattr(torch, f"_foreach_{name}") for name in ("lerp_", "div", "copy_"))
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
DROPOUT_STREAM = 2  # of a seed's streams of random numbers; data.batches has the others


class Trainer:
    """Model, optimizer and loss scaler of a trial after `step` updates.

    A GPU replays its steps but the first; where it cannot, `warnings` says so.
    The configuration must have its steps, measured where its budget is in seconds.
    """

    def __init__(self, config: TrialConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.model = Decoder(config.model, config.seed).to(device)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.scaler = self._fresh_scaler()
        averaged = self.model.parameters() if config.optim.ema_decay else ()
        self._averages = [torch.zeros_like(p, requires_grad=False) for p in averaged]
        self.step = 0
        self.layer_grad_norms = torch.empty(0)
        self.warnings: list[str] = []
        self._captured: CapturedStep | None = None
        self._rates = [torch.zeros((), device=device) for _ in self.optimizer.param_groups]

    def _fresh_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.config.precision == "fp16")

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = AUTOCAST_DTYPES.get(self.config.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def _hidden_and_targets(self, batch_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [N, D] of a batch [B, T + 1]'s inputs, and its targets [N]."""
        return self.model(batch_BT[:, :-1]).flatten(0, 1), batch_BT[:, 1:].flatten()

    def train_step(
        self, batch_BT: Tensor, *, measure_layers: bool = False
    ) -> tuple[Tensor, Tensor]:
        """One update on a batch [B, T + 1]; its loss before, and the norm of the gradient.

        With `measure_layers`, `layer_grad_norms` gets the norm of each layer's part, before
        clipping.
        """
        self._set_learning_rate()
        self.model.train()
        if self.config.model.dropout:
            torch.manual_seed(self._dropout_seed())
        if self.device.type == "cuda":
            loss, norm, self.layer_grad_norms = self._update_on_gpu(batch_BT)
        else:
            loss, norm, self.layer_grad_norms = self._update(batch_BT, measure_layers)
        self.step += 1
        return loss, norm

    def _set_learning_rate(self) -> None:
        optim, steps = self.config.optim, self.config.budget.steps
        for group, on_gpu in zip(self.optimizer.param_groups, self._rates, strict=True):
            rate = optim.learning_rate_at(self.step, steps, group.get("full_rate"))
            # A replay reads it there.
            group["lr"] = on_gpu.fill_(rate) if self.device.type == "cuda" else rate

    def _update(self, batch_BT: Tensor, measure_layers: bool = True) -> tuple[Tensor, ...]:
        """All that a device computes in a step: loss, norm, and norms of the layers if asked."""
        with self._autocast():
            hidden_ND, targets_N = self._hidden_and_targets(batch_BT)
            loss = mean_cross_entropy(
                hidden_ND, self.model.head_weight, targets_N, self.config.optim.z_loss
            )
            total = loss
            if self.config.model.feed_forward == "moe":
                total = loss + self.config.optim.balance_loss * self.model.balance_loss()
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimizer)
        of_layers = self._layer_grad_norms() if measure_layers else torch.empty(0)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self._averages:
            self._average()
        return loss.detach(), norm, of_layers

    @torch.no_grad()
    def _average(self) -> None:
        weights = [*self.model.parameters()]
        lerp_(self._averages, weights, 1 - self.config.optim.ema_decay)

    @contextmanager
    def averaged(self) -> Generator[None]:
        """The model with its averaged weights, which must be kept; afterwards with its own.

        The sum begins with zeros, and is divided by what its weights add up to (as the moments of
        Kingma and Ba 2015, Adam), so that the first steps do not count for more than others.
        """
        total = 1 - self.config.optim.ema_decay**self.step
        own = [parameter.data for parameter in self.model.parameters()]
        averages = divide(self._averages, total)
        try:
            self._put(averages)
            yield
        finally:
            self._put(own)  # in their place, where a replay reads them

    def _put(self, weights: Sequence[Tensor]) -> None:
        for parameter, weight in zip(self.model.parameters(), weights, strict=True):
            parameter.data = weight

    def _update_on_gpu(self, batch_BT: Tensor) -> tuple[Tensor, ...]:
        """The first update as it is, and then recorded; the others replayed where that worked."""
        if self._captured:
            return self._captured(batch_BT)
        if self.warnings:  # on a side stream, memory would be freed too late: 36 GB on an H200
            return self._update(batch_BT)
        measured = on_side_stream(self._update, batch_BT)
        self._capture(batch_BT)
        return measured

    def _capture(self, batch_BT: Tensor) -> None:
        """Record the update, which changes nothing; where that fails, leave nothing half done."""
        try:
            self._set_capturable(True)
            self._captured = CapturedStep(self._update, batch_BT)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            self.warnings.append(f"steps take longer than they could: no CUDA graph ({reason})")
            self.optimizer.zero_grad()
            scaler = self.scaler.state_dict()
            self.scaler = self._fresh_scaler()
            self.scaler.load_state_dict(scaler)
        finally:
            self._set_capturable(False)

    def _set_capturable(self, capturable: bool) -> None:
        """What AdamW demands of itself while it is recorded, and warns of at other times."""
        for group in self.optimizer.param_groups:
            group["capturable"] = capturable

    @property
    def captured(self) -> bool:
        """Whether the next update is a replay."""
        return self._captured is not None

    def _dropout_seed(self) -> int:
        """A function of the step, so that a resumed trial drops what an undisturbed one drops."""
        stream = np.random.SeedSequence([self.config.seed, DROPOUT_STREAM, self.step])
        return int(stream.generate_state(1)[0])

    def _layer_grad_norms(self) -> Tensor:
        """Norm of the gradient of each layer's parameters: [layers], the embedding left out."""
        return torch.stack(
            [
                nn.utils.get_total_norm(p.grad for p in layer.parameters() if p.grad is not None)
                for layer in self.model.layers
            ]
        )

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        return self.config.optim.learning_rate_at(self.step, self.config.budget.steps)

    @torch.no_grad()
    def metrics(self, batch_BT: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The measures of a batch [B, T + 1], 0-d, and its bins [3, K]: see `token_metrics`."""
        self.model.eval()
        with self._autocast():
            hidden_ND, targets_N = self._hidden_and_targets(batch_BT)
            return token_metrics(hidden_ND, self.model.head_weight, targets_N)

    @torch.no_grad()
    def loss(self, batch_BT: Tensor) -> Tensor:
        """Mean loss of a batch [B, T + 1] in nats, 0-d."""
        self.model.eval()
        with self._autocast():
            hidden_ND, targets_N = self._hidden_and_targets(batch_BT)
            return token_loss(hidden_ND, self.model.head_weight, targets_N)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averages": self._averages,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state that `state_dict` gave.

        Raises KeyError, ValueError or RuntimeError for a state of another model, and may have taken
        up a part of it then.
        """
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._captured = None  # of tensors that the optimizer has replaced
        self.scaler.load_state_dict(state["scaler"])
        if self._averages:  # a state of an earlier version has none
            copy_(self._averages, state["averages"])


class Stopwatch:
    """Seconds between marks, read after the window: on a GPU by events, which do not wait."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []

    def mark(self) -> Any:
        """A point in the device's time."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def span(self, begin: Any) -> None:
        """Count the time from `begin` until now."""
        self._spans.append((begin, self.mark()))

    def seconds(self) -> list[float]:
        """The counted times, in their order; waits for the device."""
        if not self._on_gpu:
            return [end - begin for begin, end in self._spans]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1000 for begin, end in self._spans]
