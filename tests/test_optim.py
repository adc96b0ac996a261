import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quarterhour.model.decoder import Decoder, DecoderConfig
from quarterhour.model.optim import OptimConfig, build_optimizer

RATES = st.floats(1e-6, 10)
FRACTIONS = st.floats(0, 1)
WARMUPS = st.floats(0, 1, exclude_max=True)


def tiny_decoder() -> Decoder:
    sizes = {"vocab_size": 20, "d_model": 8, "n_heads": 2, "n_layers": 2, "d_ff": 12}
    return Decoder(DecoderConfig(**sizes), seed=0)


@given(RATES, st.integers(1, 3_000), st.data())
def test_without_warmup_the_schedule_is_the_studys_as_run(
    rate: float, steps: int, data: st.DataObject
):
    k = data.draw(st.integers(0, steps))
    expected = rate * (0.1 + 0.9 * (1 + math.cos(math.pi * k / steps)) / 2)
    assert OptimConfig(learning_rate=rate).learning_rate_at(k, steps) == pytest.approx(expected)


@given(RATES, FRACTIONS, st.integers(1, 3_000))
def test_the_schedule_goes_from_the_full_rate_to_the_final_fraction(
    rate: float, final: float, steps: int
):
    config = OptimConfig(learning_rate=rate, final_lr_fraction=final)
    assert config.learning_rate_at(0, steps) == pytest.approx(rate)
    assert config.learning_rate_at(steps, steps) == pytest.approx(final * rate, abs=1e-12 * rate)


def test_the_studys_baseline_is_at_its_middle_rate_half_way():
    config = OptimConfig(learning_rate=3e-4)
    assert config.learning_rate_at(1_000, 2_000) == pytest.approx(3e-4 * 0.55)
    assert config.learning_rate_at(2_000, 2_000) == pytest.approx(3e-5)


@given(RATES, WARMUPS, FRACTIONS, st.integers(1, 200))
def test_warmup_rises_in_equal_steps_to_the_full_rate_and_the_rest_falls(
    rate: float, warmup_fraction: float, final: float, steps: int
):
    config = OptimConfig(
        learning_rate=rate, warmup_fraction=warmup_fraction, final_lr_fraction=final
    )
    warmup = int(warmup_fraction * steps)
    rates = [config.learning_rate_at(step, steps) for step in range(steps + 1)]
    expected = [rate * (step + 1) / warmup for step in range(warmup)]
    assert rates[:warmup] == pytest.approx(expected)
    assert rates[warmup] == pytest.approx(rate)
    assert max(rates) <= rate * (1 + 1e-12)
    falling = rates[warmup:]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(falling))
    assert rates[-1] == pytest.approx(final * rate, abs=1e-12 * rate)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("learning_rate", 0.0, "above 0"),
        ("learning_rate", -1e-3, "above 0"),
        ("learning_rate", math.nan, "above 0"),
        ("learning_rate", math.inf, "above 0"),
        ("eps", 0.0, "above 0"),
        ("clip_norm", 0.0, "above 0"),
        ("weight_decay", -0.1, "at least 0"),
        ("weight_decay", math.nan, "at least 0"),
        ("beta1", 1.0, "at least 0 and below 1"),
        ("beta2", -0.1, "at least 0 and below 1"),
        ("warmup_fraction", 1.0, "at least 0 and below 1"),
        ("muon_learning_rate", 0.0, "above 0"),
        ("muon_momentum", 1.0, "at least 0 and below 1"),
        ("final_lr_fraction", 1.1, "within 0 and 1"),
        ("final_lr_fraction", math.nan, "within 0 and 1"),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: float, allowed: str):
    values: dict[str, Any] = {"learning_rate": 1e-3} | {field: value}
    with pytest.raises(ValueError, match=rf"^optim\.{field} is {value}: it must be {allowed}$"):
        OptimConfig(**values)


def test_the_bounds_themselves_are_allowed():
    OptimConfig(learning_rate=1e-3, weight_decay=0.0, beta1=0.0, beta2=0.0, final_lr_fraction=0.0)
    OptimConfig(learning_rate=1e-3, warmup_fraction=0.0, final_lr_fraction=1.0)


def test_adamw_has_the_configured_values():
    config = OptimConfig(learning_rate=2e-3, beta1=0.8, beta2=0.95, weight_decay=0.3, eps=1e-7)
    (group,) = build_optimizer(tiny_decoder(), config).param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (2e-3, (0.8, 0.95), 1e-7)
    assert group["weight_decay"] == 0.3
    assert group["fused"]


def test_weight_decay_shrinks_every_parameter_norms_and_embedding_too():
    model = tiny_decoder()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(learning_rate=0.5, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert len(before) == 2 + 2 * 6
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.5 * 0.1), msg=name)


@pytest.mark.parametrize("heads_per_kv", [1, 2])
def test_muons_matrices_have_torchs_muon_and_the_rest_adamw(heads_per_kv: int):
    sizes = {"vocab_size": 20, "d_model": 8, "n_heads": 2, "n_layers": 2, "d_ff": 12}
    model = Decoder(DecoderConfig(**sizes, heads_per_kv=heads_per_kv), seed=0)
    config = OptimConfig(learning_rate=2e-3, optimizer="muon", muon_momentum=0.9)
    optimizer = build_optimizer(model, config)
    optimizer.param_groups[1]["lr"] = optimizer.param_groups[2]["lr"] = config.muon_learning_rate

    def parts(name: str, x: torch.Tensor) -> list[torch.Tensor]:
        rows = model.config.qkv_widths if "qkv" in name else [len(x)]
        return [part.detach().clone() for part in x.split(rows)]

    theirs = {name: parts(name, p) for name, p in model.named_parameters()}
    hidden = [part for name in theirs if "qkv" in name for part in theirs[name]]
    hidden += [p for name, (p, *_) in theirs.items() if p.ndim == 2 and name.startswith("layers")
               and "qkv" not in name]  # fmt: skip
    ids = {id(p) for p in hidden}
    rest = [p for each in theirs.values() for p in each if id(p) not in ids]
    muon = torch.optim.Muon(hidden, lr=0.02, momentum=0.9, weight_decay=0.1)
    adamw = torch.optim.AdamW(rest, lr=2e-3, weight_decay=0.1)
    for _ in range(3):
        for name, p in model.named_parameters():
            p.grad = torch.randn_like(p)
            for part, grad in zip(theirs[name], parts(name, p.grad), strict=True):
                part.grad = grad
        for each in (optimizer, muon, adamw):
            each.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(
            p.detach(), torch.cat(theirs[name]), msg=name, rtol=1e-5, atol=1e-6
        )


def test_muons_update_is_the_published_one_on_a_small_matrix():
    """The iteration in fp32, where it gives singular values between 0.68 and 1.14."""
    model = tiny_decoder()
    optimizer = build_optimizer(
        model, OptimConfig(learning_rate=1, optimizer="muon", weight_decay=0)
    )
    up = model.layers[0].get_parameter("up.weight")
    before, up.grad = up.detach().clone(), torch.randn_like(up)
    x = up.grad.T / up.grad.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    optimizer.step()
    change = (before - up.detach()) / (12 / 8) ** 0.5
    torch.testing.assert_close(change, x.T, rtol=0, atol=0.03)  # bf16's rounding
    assert torch.linalg.svdvals(change).tolist() == pytest.approx([0.9] * 8, abs=0.3)


def test_a_loss_scaler_that_found_no_number_skips_all_of_muons_update():
    model = tiny_decoder()
    optimizer = build_optimizer(model, OptimConfig(learning_rate=1e-3, optimizer="muon"))
    scaler = torch.amp.GradScaler("cpu")

    def update(gradient: float) -> None:
        scaler.scale(torch.ones(()))
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()

    update(1.0)
    before = [p.detach().clone() for p in model.parameters()]
    momenta = [s["momentum"].clone() for s in optimizer.state.values() if "momentum" in s]
    update(math.inf)
    assert all(map(torch.equal, before, model.parameters()))
    after = [s["momentum"] for s in optimizer.state.values() if "momentum" in s]
    assert momenta
    assert all(map(torch.equal, momenta, after))


def test_muon_has_its_own_rate_on_the_same_schedule():
    config = OptimConfig(learning_rate=1e-3, warmup_fraction=0.1)
    for step in range(41):
        rates = config.learning_rate_at(step, 40), config.learning_rate_at(step, 40, 0.02)
        assert rates[1] == pytest.approx(20 * rates[0])


def test_a_cyclical_schedule_starts_again_at_the_full_rate_after_its_warmup():
    config = OptimConfig(
        learning_rate=2.0, schedule="cyclical", cycles=3, warmup_fraction=0.25,
        final_lr_fraction=0.5,
    )  # fmt: skip
    rates = [config.learning_rate_at(step, 40) for step in range(40)]
    assert rates[:10] == pytest.approx([2.0 * step / 10 for step in range(1, 11)])
    assert rates[10:20] == pytest.approx(rates[20:30])
    assert rates[10:20] == pytest.approx(rates[30:40])
    assert [rates[10], rates[15]] == pytest.approx([2.0, 1.5])
    assert rates[10:20] == sorted(rates[10:20], reverse=True)


def test_the_stable_part_of_a_schedule_is_what_warmup_and_decay_leave():
    config = OptimConfig(
        learning_rate=1.0, schedule="warmup-stable-decay", decay_fraction=0.25,
        warmup_fraction=0.2, final_lr_fraction=0.0,
    )  # fmt: skip
    rates = [config.learning_rate_at(step, 100) for step in range(101)]
    assert [step for step, rate in enumerate(rates) if rate == 1.0] == list(range(19, 81))
    assert rates[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 101)])


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("decay_fraction", 0.0, "above 0 and at most 1"),
        ("decay_fraction", 1.1, "above 0 and at most 1"),
        ("cycles", 0, "at least 1"),
    ],
)
def test_a_schedules_share_or_number_out_of_range_is_named(field: str, value: Any, allowed: str):
    with pytest.raises(ValueError, match=rf"^optim\.{field} is {value}: it must be {allowed}$"):
        OptimConfig(learning_rate=1e-3, **{field: value})


SCHEDULES = ("cosine", "constant", "linear", "warmup-stable-decay", "cyclical")


@given(
    st.sampled_from(SCHEDULES), st.integers(4, 500), st.floats(0, 0.5), st.floats(0, 1),
    st.floats(0.1, 1), st.integers(1, 8),
)  # fmt: skip
def test_every_schedule_warms_up_and_stays_between_its_final_and_its_full_rate(
    schedule: Any, steps: int, warmup: float, final: float, decay: float, cycles: int
):
    config = OptimConfig(
        learning_rate=1e-3, schedule=schedule, warmup_fraction=warmup, final_lr_fraction=final,
        decay_fraction=decay, cycles=cycles,
    )  # fmt: skip
    rates = [config.learning_rate_at(step, steps) for step in range(steps + 1)]
    begin = int(warmup * steps)
    assert rates[:begin] == sorted(rates[:begin])
    assert rates[begin] == pytest.approx(1e-3)
    assert all(final * 1e-3 * (1 - 1e-9) <= rate <= 1e-3 * (1 + 1e-9) for rate in rates[begin:])
    if schedule not in ("constant", "cyclical"):
        assert rates[begin:] == sorted(rates[begin:], reverse=True)
    if schedule != "constant":
        assert rates[-1] == pytest.approx(final * 1e-3)


def test_schedules_have_the_shapes_of_their_names():
    def rates(**values: Any) -> list[float]:
        config = OptimConfig(learning_rate=1.0, final_lr_fraction=0.0, **values)
        return [config.learning_rate_at(step, 8) for step in range(9)]

    assert rates(schedule="constant") == [1.0] * 9
    assert rates(schedule="linear") == pytest.approx([1 - step / 8 for step in range(9)])
    stable = rates(schedule="warmup-stable-decay", decay_fraction=0.5)
    assert stable == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
    cyclical = rates(schedule="cyclical", cycles=2)
    assert cyclical[:4] == pytest.approx(cyclical[4:8])
    assert cyclical[:4] == pytest.approx(rates(schedule="cosine")[0:8:2])
