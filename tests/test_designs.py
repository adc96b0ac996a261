"""Designs of experiments: their cells, their effects, and what those cannot be told from."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quarterhour.search_spaces.designs import (
    REFERENCE,
    Design,
    build_design,
    parse_factors,
    with_levels,
)
from quarterhour.search_spaces.profiles import QUICK

SEVEN = {f"optim.f{n}": (0, 1) for n in range(7)}


def matrix(design: Design) -> np.ndarray:
    """The linear model: an intercept and a column an effect, a row a cell."""
    columns = [[told.codes[name] for name in design.cells] for told in design.effects().values()]
    return np.column_stack([np.ones(len(design.cells)), *columns])


def test_seven_factors_in_sixteen_cells_tell_their_effects_apart_from_all_of_two():
    design = build_design("fraction", SEVEN, 4, {})
    effects = design.effects()
    assert len(design.cells) == 16
    assert [name for name, told in effects.items() if not told.aliases] == [
        f"f{n} 0 → 1" for n in range(7)
    ]
    pairs = [name for name, told in effects.items() if told.aliases]
    assert len(pairs) == 7
    assert all(len(effects[name].aliases) == 2 for name in pairs)
    assert np.linalg.matrix_rank(matrix(design)) == 15
    assert [told.partition(" = ")[0] for told in design.generators] == ["f4", "f5", "f6"]
    for told in design.generators:
        made, _, parts = told.partition(" = ")
        signs = [2 * np.array([cell[f"optim.{f}"] for cell in design.cells.values()]) - 1
                 for f in (made, *parts.removeprefix("-").split(" × "))]  # fmt: skip
        assert set(np.prod(signs, 0)) == ({-1} if parts.startswith("-") else {1})


@given(st.integers(2, 9), st.sampled_from([3, 4, 5]))
def test_a_fraction_is_balanced_and_of_its_resolution(n: int, resolution: int):
    design = build_design("fraction", {f"f{i}": (0, 1) for i in range(n)}, resolution, {})
    for path in design.factors:
        assert sum(cell[path] for cell in design.cells.values()) == len(design.cells) / 2
    effects = design.effects()
    if resolution >= 4 and n >= 4:
        assert not any(effects[f"f{i} 0 → 1"].aliases for i in range(n))
    if resolution == 5 and n >= 5:
        assert not any(told.aliases for told in effects.values())
    assert np.linalg.matrix_rank(matrix(design)) == 1 + len(effects)
    assert len(design.cells) == 2 ** (n - len(design.generators))


def test_the_codes_of_a_cross_give_its_effects():
    design = build_design("cross", {"a": (1, 2), "b": (10, 20)}, 4, {})
    loss = {(1, 10): 4.0, (2, 10): 3.0, (1, 20): 3.5, (2, 20): 1.5}
    y = [loss[cell["a"], cell["b"]] for cell in design.cells.values()]
    found = np.linalg.lstsq(matrix(design), np.array(y))[0][1:]
    assert dict(zip(design.effects(), found, strict=True)) == pytest.approx(
        {"a 1 → 2": -1.5, "b 10 → 20": -1.0, "a × b": -0.5}
    )


def test_one_at_a_time_leaves_all_else_as_it_is():
    factors = parse_factors(["optim.learning_rate=6e-4,1.2e-3", "model.n_layers=2"])
    base = QUICK.baseline
    design = build_design("one-at-a-time", factors, 4, base.values())
    assert design.cells == {
        REFERENCE: {},
        "learning_rate=0.0006": {"optim.learning_rate": 6e-4},  # 1.2e-3 is the baseline's own
        "n_layers=2": {"model.n_layers": 2},
    }
    assert list(design.effects()) == ["learning_rate=0.0006", "n_layers=2"]


def test_fields_of_one_name_keep_their_paths():
    design = build_design("one-at-a-time", {"a.x": (1,), "b.x": (2,)}, 4, {})
    assert list(design.cells) == [REFERENCE, "a.x=1", "b.x=2"]


def test_a_width_takes_heads_and_feed_forward_width_along():
    wide = with_levels(QUICK.baseline, {"model.d_model": 128}).model
    assert (wide.d_model, wide.n_heads, wide.d_ff) == (128, 8, 512)
    own = with_levels(QUICK.baseline, {"model.d_model": 128, "model.d_ff": 100}).model
    assert (own.n_heads, own.d_ff) == (8, 100)


def test_a_gated_feed_forward_is_narrower_by_its_third_matrix():
    base = QUICK.baseline.model
    swiglu = with_levels(QUICK.baseline, {"model.feed_forward": "swiglu"}).model
    assert swiglu.d_ff == 256
    assert swiglu.parameters == base.parameters
    moe = with_levels(QUICK.baseline, {"model.feed_forward": "moe"}).model
    assert moe.d_ff == 128
    router = moe.n_layers * moe.d_model * moe.n_experts
    assert moe.flops_per_token(128) == base.flops_per_token(128) + 6 * router
    relu2 = with_levels(QUICK.baseline, {"model.feed_forward": "relu2"}).model
    assert relu2.d_ff == base.d_ff
    both = with_levels(QUICK.baseline, {"model.d_model": 192, "model.feed_forward": "swiglu"})
    assert both.model.d_ff == 512


@pytest.mark.parametrize(
    ("path", "level", "message"),
    [
        ("model.d_model", "wide", "model.d_model is 'wide': it must be of type int"),
        ("model.d_model", float("inf"), "model.d_model is inf: it must be of type int"),
        ("model.active_experts", 0, "active_experts"),
        ("model.feed_forward", "swig", "model.feed_forward is 'swig': it must be silu or"),
    ],
)
def test_a_level_that_is_no_size_is_refused(path: str, level: Any, message: str):
    experts = QUICK.baseline.with_values({"model.feed_forward": "moe"})
    with pytest.raises(ValueError, match=message):
        with_levels(experts, {path: level})


@pytest.mark.parametrize(
    ("kind", "texts", "message"),
    [
        ("cross", [], "nothing varies"),
        ("cross", ["model.n_layers=1"], "has one level"),
        ("cross", ["model.n_layers=1,1"], "has the level 1 twice"),
        ("cross", ["model.n_layers=1", "model.n_layers=2"], "is given twice"),
        ("fraction", ["model.n_layers=1,2,3", "seed=0,1"], "has 3 levels: a fraction has two"),
        ("fraction", ["model.n_layers=1,2"], "a fraction needs two settings"),
        ("zigzag", ["model.n_layers=1,2"], "unknown --design 'zigzag': use one-at-a-time, cross"),
        ("cross", [f"f{n}=0,1" for n in range(9)], "has 512 cells, and at most 256"),
        ("cross", ["model.n_layers"], "is not an assignment"),
    ],
)
def test_what_is_no_design_is_refused(kind: str, texts: list[str], message: str):
    base: dict[str, Any] = {}
    with pytest.raises(ValueError, match=message):
        build_design(kind, parse_factors(texts), 4, base)


def test_a_resolution_out_of_range_is_refused():
    with pytest.raises(ValueError, match="--resolution is 9: it must be 3, 4 or 5"):
        build_design("fraction", SEVEN, 9, {})
