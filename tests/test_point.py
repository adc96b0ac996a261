import itertools
import json
import tracemalloc
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quarterhour.search_spaces.point import BudgetConfig, TrialConfig, parse_assignment
from quarterhour.search_spaces.profiles import PAPER, QUICK

BASE = QUICK.baseline

VALUES = st.fixed_dictionaries(
    {},
    optional={
        "optim.learning_rate": st.floats(1e-8, 10),
        "optim.beta2": st.floats(0, 0.9999),
        "optim.warmup_fraction": st.floats(0, 0.99),
        "data.batch_size": st.integers(1, 64),
        "model.n_heads": st.sampled_from([1, 2, 3, 4, 6, 8, 12]),
        "model.positions": st.sampled_from(["none", "rope"]),
        "budget.max_steps": st.one_of(st.none(), st.integers(1, 500)),
        "seed": st.integers(0, 10),
    },
)


@given(VALUES)
def test_values_come_back_and_survive_json(values: dict[str, Any]):
    config = BASE.with_values(values)
    assert TrialConfig.from_dict(json.loads(json.dumps(asdict(config)))) == config
    for path, value in values.items():
        section, _, field = path.rpartition(".")
        assert getattr(getattr(config, section) if section else config, field) == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim.lr": 1.0}, r"unknown key 'optim.lr' \(did you mean optim"),
        ({"nothing": 1}, "unknown key 'nothing'"),
        ({"optim": 1}, "unknown key 'optim'"),
        ({"seed.x": 1}, "unknown key 'seed.x'"),
        ({"optim.learning_rate": "fast"}, "optim.learning_rate is 'fast': it must be of type"),
        ({"optim.learning_rate": True}, "optim.learning_rate is True"),
        ({"data.batch_size": 8.0}, "data.batch_size is 8.0: it must be of type int"),
        (
            {"model.positions": "alibi"},
            "'alibi': it must be none or rope or rope-full",
        ),
        ({"model.window": 0}, "model.window is 0: it must be at least 1"),
        ({"model.full_every": 0}, "model.full_every is 0: it must be at least 1"),
        ({"model.soft_cap": -1.0}, "model.soft_cap is -1.0: it must be at least 0"),
        ({"model.rope_base": 1.0}, "model.rope_base is 1.0: it must be above 1"),
        (
            {"model.d_model": 90, "model.positions": "rope-full"},
            "is 15: positions 'rope-full' needs a multiple of 2",
        ),
        ({"optim.z_loss": -1.0}, "optim.z_loss is -1.0: it must be at least 0"),
        ({"model.heads_per_kv": 0}, "model.heads_per_kv is 0: it must be at least 1"),
        ({"model.heads_per_kv": 4}, "model.heads_per_kv is 4: it must divide model.n_heads 6"),
        ({"model.feed_forward": "gelu"}, "'gelu': it must be silu or relu2 or swiglu"),
        ({"budget.max_steps": 1.5}, "budget.max_steps is 1.5: it must be of type int or None"),
        ({"model.n_heads": 5}, "model.n_heads is 5: it must divide model.d_model 96"),
        ({"optim.beta2": 1.0}, "optim.beta2 is 1.0"),
        ({"optim.learning_rate": float("nan")}, "optim.learning_rate is nan"),
        ({"budget.eval_every": 10}, "must be a multiple of budget.report_every 3"),
        ({"precision": "int8"}, "precision is 'int8'"),
        ({"precision": None}, "precision is None: it must be fp32 or bf16 or fp16"),
        ({"model.d_head": 16}, "unknown key 'model.d_head'"),
        ({"key": "k"}, "unknown key 'key'"),
        ({"__class__.seed": 1}, "unknown key '__class__.seed'"),
        ({"optim.": 1}, "unknown key 'optim.'"),
        ({"": 1}, "unknown key ''"),
        ({"seed": None}, "seed is None: it must be of type int$"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
        ({"budget.max_steps": 0}, "budget.max_steps is 0: it must be at least 1"),
        ({"data.seq_len": 0}, "data.seq_len is 0: it must be at least 1"),
        ({"optim.learning_rate": 10**400}, "optim.learning_rate is 1000"),
    ],
)
def test_what_cannot_be_is_refused_by_name(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        BASE.with_values(values)


# Another valid value for every field there is.
CHANGES: dict[str, Any] = {
    "model.vocab_size": 8_193, "model.d_model": 192, "model.n_heads": 8, "model.n_layers": 4,
    "model.d_ff": 385, "model.positions": "rope", "model.dropout": 0.1,
    "model.rope_base": 1e4, "model.attention": "window", "model.window": 64, "model.full_every": 2,
    "model.soft_cap": 50.0, "model.head": "untied", "model.residual_init": "by-depth",
    "optim.z_loss": 1e-4, "optim.balance_loss": 0.1, "optim.ema_decay": 0.99,
    "model.n_experts": 4, "model.active_experts": 1,
    "model.feed_forward": "swiglu", "model.heads_per_kv": 2, "model.norm": "layer",
    "model.norm_place": "pre-and-post", "model.qk_norm": "rms",
    "optim.learning_rate": 1e-5, "optim.beta1": 0.8, "optim.beta2": 0.95, "optim.eps": 1e-7,
    "optim.weight_decay": 0.0, "optim.clip_norm": 2.0, "optim.warmup_fraction": 0.1,
    "optim.final_lr_fraction": 0.0, "optim.schedule": "linear", "optim.decay_fraction": 0.5,
    "optim.cycles": 2, "optim.optimizer": "muon", "optim.muon_learning_rate": 0.01,
    "optim.muon_momentum": 0.9,
    "data.batch_size": 9, "data.seq_len": 127,
    "budget.steps": 299, "budget.report_every": 6, "budget.eval_every": 30,
    "budget.eval_batches": 9, "budget.max_steps": 5, "budget.seconds": 60.0,
    "precision": "bf16", "seed": 1,
}  # fmt: skip


def values_of(config: TrialConfig) -> dict[str, Any]:
    """All fields of a configuration by their dotted paths."""
    values: dict[str, Any] = {}
    for name, value in asdict(config).items():
        if isinstance(value, dict):
            values |= {f"{name}.{field}": part for field, part in value.items()}
        else:
            values[name] = value
    return values


def test_every_field_has_another_value_to_tell_keys_apart_by():
    assert CHANGES.keys() == values_of(BASE).keys()
    assert not CHANGES.items() & values_of(BASE).items()


@given(st.sets(st.sampled_from(sorted(CHANGES))))
def test_values_put_in_are_the_only_ones_that_change(paths: set[str]):
    values = {path: CHANGES[path] for path in paths}
    before = values_of(BASE)
    unmeasured = {"budget.steps": 0} if "budget.seconds" in values else {}
    assert values_of(BASE.with_values(values)) == before | unmeasured | values
    assert values_of(BASE) == before
    assert BASE.with_values(before | unmeasured | values) == BASE.with_values(values)


def test_values_that_only_fit_together_can_be_put_in_together():
    model = BASE.with_values({"model.n_heads": 5, "model.d_model": 100}).model
    assert (model.n_heads, model.d_model) == (5, 100)


def test_the_key_follows_everything_that_decides_the_numbers():
    keys = [BASE.with_values({path: value}).key("data") for path, value in CHANGES.items()]
    keys += [BASE.key("data"), BASE.key("other data")]
    assert len(set(keys)) == len(keys)


def test_a_choice_at_its_default_is_not_in_the_key(monkeypatch: pytest.MonkeyPatch):
    identities: list[Any] = []
    monkeypatch.setattr("json.dumps", lambda value, **_: identities.append(value) or "")
    BASE.key("data")
    chosen = BASE.with_values({"model.feed_forward": "swiglu"})
    chosen.key("data")
    (plain, _, _), (other, _, _) = identities
    assert "feed_forward" not in plain["model"]
    assert other == plain | {"model": plain["model"] | {"feed_forward": "swiglu"}}


def test_equal_configurations_have_equal_keys():
    whole, real = ({"optim.learning_rate": value} for value in (1, 1.0))
    assert BASE.with_values(whole).key("data") == BASE.with_values(real).key("data")
    read = TrialConfig.from_dict(json.loads(json.dumps(asdict(BASE))))
    assert read.key("data") == BASE.key("data")


def test_the_key_follows_the_version_of_the_numerics(monkeypatch: pytest.MonkeyPatch):
    key = BASE.key("data")
    monkeypatch.setattr("quarterhour.search_spaces.point.NUMERICS_VERSION", -1)
    assert BASE.key("data") != key


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("optim.learning_rate=1e-3", 1e-3),
        ("data.batch_size=16", 16),
        ("model.positions=rope", "rope"),
        ("budget.max_steps=None", None),
        ("precision='bf16'", "bf16"),
        ("seed==1", "=1"),
        ("seed={[]:1}", "{[]:1}"),
    ],
)
def test_an_assignment_is_read_as_python_writes_it(text: str, value: Any):
    assert parse_assignment(text) == (text.split("=")[0], value)


@given(VALUES)
def test_every_value_can_be_assigned_as_text(values: dict[str, Any]):
    for path, value in values.items():
        assert parse_assignment(f"{path}={value}") == (path, value)


@pytest.mark.parametrize("text", ["", "a", "=1", "a="])
def test_what_is_no_assignment_is_refused(text: str):
    with pytest.raises(ValueError, match="is not an assignment"):
        parse_assignment(text)


@given(
    steps=st.integers(1, 500),
    report_every=st.integers(1, 20),
    evaluations=st.integers(1, 10),
    max_steps=st.one_of(st.none(), st.integers(1, 600)),
)
def test_windows_tile_the_run_with_every_evaluation_and_quarter_at_an_end(
    steps: int, report_every: int, evaluations: int, max_steps: int | None
):
    eval_every = report_every * evaluations
    budget = BudgetConfig(
        steps=steps, report_every=report_every, eval_every=eval_every, max_steps=max_steps
    )
    ends = list(budget.window_ends())
    assert ends == sorted(set(ends))
    assert ends[0] == 1
    assert ends[-1] == budget.trained_steps <= steps
    assert all(b - a <= report_every for a, b in itertools.pairwise(ends))
    evaluated = {step + 1 for step in range(0, steps, eval_every)}
    wanted = evaluated | {steps * quarter // 4 for quarter in (1, 2, 3, 4)} - {0}
    assert {end for end in wanted if end <= budget.trained_steps} <= set(ends)
    assert set(filter(budget.evaluates_at, ends)) == evaluated & set(ends) | {budget.trained_steps}


def test_the_study_is_evaluated_where_it_was_and_at_the_end():
    budget = PAPER.baseline.budget
    evaluated = [end for end in budget.window_ends() if budget.evaluates_at(end)]
    assert evaluated == [1, 401, 801, 1201, 1601, 2000]


def test_the_windows_of_a_billion_steps_are_made_one_by_one():
    budget = BudgetConfig(steps=10**9, report_every=1, eval_every=1)
    tracemalloc.start()
    assert list(itertools.islice(budget.window_ends(), 3)) == [1, 2, 3]
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("model.n_layers", True, "it must be of type int"),
        ("model.d_model", 96.0, "it must be of type int"),
        ("optim.learning_rate", "1", "it must be of type float"),
        ("optim.learning_rate", None, "it must be of type float"),
        ("precision", "int3", "it must be fp32 or bf16 or fp16"),
        ("model.extra", 3, "unknown key 'model.extra'"),
        ("model", 3, "unknown key 'model'"),
    ],
)
def test_values_of_a_file_that_are_of_another_kind_are_named(path: str, value: Any, reason: str):
    values: dict[str, Any] = asdict(BASE)
    *sections, name = path.split(".")
    (values[sections[0]] if sections else values)[name] = value
    with pytest.raises(ValueError, match=reason):
        TrialConfig.from_dict(values)
