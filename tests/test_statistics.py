import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from quarterhour.analysis.statistics import (
    mean_interval,
    mean_intervals,
    pairwise_differences,
    pearson,
    prediction_interval,
    spearman,
)

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


def test_the_mean_of_three_seeds_has_students_interval():
    n, mean, low, high = mean_interval([2.0, 3.0, 4.0])
    assert (n, mean) == (3, 3.0)
    # t of 0.975 with 2 degrees of freedom is 4.3027; s is 1
    assert (low, high) == pytest.approx((3 - 4.3027 / 3**0.5, 3 + 4.3027 / 3**0.5), abs=1e-4)
    _, _, low, high = prediction_interval([2.0, 3.0, 4.0])
    assert high - 3 == pytest.approx(4.3027 * (4 / 3) ** 0.5, abs=1e-4)
    assert 3 - low == pytest.approx(high - 3)


@pytest.mark.parametrize("interval", [mean_interval, prediction_interval])
def test_one_seed_has_no_interval_and_none_no_mean(interval):
    assert interval([2.5])[:2] == (1, 2.5)
    assert np.isnan(interval([2.5])[2:]).all()
    assert interval([]).n == 0
    assert np.isnan(interval([])[1:]).all()


def test_a_figure_that_one_seed_lacks_is_missing():
    assert np.isnan(mean_interval([1.0, float("nan"), 2.0])[1:]).all()


def test_groups_have_the_intervals_of_their_values():
    groups = {"a": [2.0, 3.0, 7.0], "b": [1.0], "c": [1.0, float("nan")]}
    rows = pd.DataFrame(
        [(name, x) for name, own in groups.items() for x in own], columns=["g", "x"]
    )
    table = mean_intervals(rows.groupby("g")["x"])
    for name, values in groups.items():
        n, mean, low, high = mean_interval(values)
        row = table.loc[name, ["n", "mean", "low", "high"]].to_list()
        assert row == pytest.approx([n, mean, low, high], nan_ok=True)


def test_intervals_hold_as_often_as_they_say():
    rng = np.random.default_rng(0)
    seeds, further = rng.normal(size=(2_000, 3)), rng.normal(size=2_000)
    means = [mean_interval(list(row)) for row in seeds]
    single = [prediction_interval(list(row)) for row in seeds]
    assert np.mean([i.low <= 0 <= i.high for i in means]) == pytest.approx(0.95, abs=0.015)
    inside = [i.low <= x <= i.high for i, x in zip(single, further, strict=True)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


@given(one=VALUES, other=VALUES)
def test_a_pair_turned_round_is_the_opposite(one: list[float], other: list[float]):
    forth = pairwise_differences({"a": one, "b": other}, best="lowest").iloc[0]
    back = pairwise_differences({"b": other, "a": one}, best="lowest").iloc[0]
    assert forth["difference"] == pytest.approx(-back["difference"])
    opposite = {"better": "worse", "worse": "better"}
    assert back["verdict"] == opposite.get(forth["verdict"], forth["verdict"])
    if not np.isnan(forth["p"]):
        assert (forth["low"], forth["high"]) == pytest.approx((-back["high"], -back["low"]))
        assert (forth["low"] > 0 or forth["high"] < 0) == (forth["p"] < 0.05)


def test_holm_allows_for_the_number_of_pairs():
    rng = np.random.default_rng(1)
    groups = {name: list(rng.normal(shift, 1, 4)) for name, shift in (("a", 0), ("b", 1), ("c", 9))}
    pairs = pairwise_differences(groups, best="lowest").set_index(["one", "other"])
    p = [stats.ttest_ind(groups[a], groups[b], equal_var=False).pvalue for a, b in pairs.index]
    assert pairs["p"].to_list() == pytest.approx(p)
    smallest, middle, largest = sorted(p)
    second = max(3 * smallest, 2 * middle)
    assert sorted(pairs["p_holm"]) == pytest.approx([3 * smallest, second, max(second, largest)])
    assert pairs["verdict"].to_dict() == {
        ("a", "b"): "tie",
        ("a", "c"): "better",
        ("b", "c"): "better",
    }


def test_what_is_better_depends_on_the_measure():
    groups = {"a": [1.0, 1.1, 1.2], "b": [5.0, 5.1, 5.3]}
    assert pairwise_differences(groups, best="lowest")["verdict"].to_list() == ["better"]
    assert pairwise_differences(groups, best="highest")["verdict"].to_list() == ["worse"]


def test_what_cannot_be_judged_says_why():
    groups = {"a": [1.0], "b": [2.0, 2.1], "c": [3.0, 3.0], "d": [4.0, 4.0], "e": []}
    pairs = pairwise_differences(groups, best="lowest").set_index(["one", "other"])
    assert pairs.loc[("a", "b"), "verdict"] == "one seed: cannot be judged"
    assert pairs.loc[("a", "b"), "difference"] == pytest.approx(-1.05)
    assert pairs.loc[("c", "d"), "verdict"] == "no spread: cannot be judged"
    assert pairs.loc[("a", "e"), "verdict"] == "missing"
    assert pairs.loc[[("a", "b"), ("c", "d")], ["low", "high"]].isna().all(axis=None)
    assert len(pairwise_differences({"a": [1.0, 2.0]}, best="lowest")) == 0


def test_pearsons_interval_is_fishers_and_admits_six():
    x, y = [1.0, 2, 3, 4, 5, 6], [1.1, 1.9, 3.2, 3.8, 5.5, 5.6]
    n, r, low, high = pearson(x, y)
    assert (n, r) == (6, pytest.approx(np.corrcoef(x, y)[0, 1]))
    half = 1.959964 / 3**0.5
    assert (low, high) == pytest.approx(
        tuple(np.tanh([np.arctanh(r) - half, np.arctanh(r) + half]))
    )
    assert pearson([*x, float("nan")], [*y, 1.0]) == (n, r, low, high)
    assert np.isnan(pearson(x[:3], y[:3])[2:]).all()
    assert np.isnan(pearson(x, [2.0] * 6)[1:]).all()


def test_a_perfect_order_of_six_is_no_proof_of_one():
    n, rho, low, high = spearman(range(6), range(10, 16))
    assert (n, rho, high) == (6, 1.0, 1.0)
    assert 0.5 < low < 0.8
    assert spearman(range(6), range(6, 0, -1))[1:] == pytest.approx((-1.0, -1.0, -low))
    assert np.isnan(spearman([1, 1, 1, 1], range(4))[1:]).all()
    assert np.isnan(spearman(range(3), range(3))[2:]).all()


def test_the_rank_interval_of_six_holds_at_least_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for r in (0.0, 0.6, 0.95):
        true = 6 / np.pi * np.arcsin(r / 2)  # Spearman's of a normal pair
        pairs = rng.multivariate_normal([0, 0], [[1, r], [r, 1]], size=(300, 6))
        intervals = [spearman(list(x), list(y)) for x, y in pairs.transpose(0, 2, 1)]
        assert np.mean([i.low <= true <= i.high for i in intervals]) > 0.93
