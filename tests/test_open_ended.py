from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FixedTrial

from quarterhour.model.optim import Schedule
from quarterhour.search_spaces.open_ended import (
    SPACES,
    architectures,
    load_space,
    locate,
    open_ended,
    reduced,
)
from quarterhour.search_spaces.profiles import PAPER, PROFILES, QUICK, Profile
from quarterhour.search_spaces.reference import PROTOCOLS, SIX, reference_configurations

LOG = {"optim.learning_rate", "optim.weight_decay", "optim.clip_norm"}


def sampled(profile: Profile, seed: int) -> optuna.Trial:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return study.ask()


def distributions(profile: Profile) -> dict[str, BaseDistribution]:
    """All parameters of the space: those of every schedule."""
    found: dict[str, BaseDistribution] = {}
    for schedule in get_args(Schedule):
        point = locate(
            open_ended(profile),
            profile.baseline,
            profile.baseline.with_values({"optim.schedule": schedule}),
        )
        found |= point.distributions
    return found


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_the_six_are_points_of_the_space(profile: Profile, protocol: str):
    space = open_ended(profile)
    for config in reference_configurations(profile, protocol).values():
        point = locate(space, profile.baseline, config)
        again = profile.baseline.with_values(space(FixedTrial(point.params)))
        assert (again.model, again.optim, again.data) == (config.model, config.optim, config.data)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_both_ends_of_every_range_can_be_reached_and_build(profile: Profile):
    space = open_ended(profile)
    baseline = locate(space, profile.baseline, profile.baseline).params
    for name, distribution in distributions(profile).items():
        if isinstance(distribution, CategoricalDistribution):
            ends: list[Any] = list(distribution.choices)
        else:
            ends = [distribution.low, distribution.high]  # pyright: ignore
        of_schedule = {"optim.cycles": "cyclical", "optim.decay_fraction": "warmup-stable-decay"}
        extra = {"optim.schedule": of_schedule[name]} if name in of_schedule else {}
        others = {"optim.cycles": 1, "optim.decay_fraction": 0.5}
        for end in ends:
            params = others | baseline | extra | {name: end}
            config = profile.baseline.with_values(space(FixedTrial(params)))
            assert locate(space, profile.baseline, config).params[name] == end


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_logarithmic_scales_are_those_of_rates_and_norms(profile: Profile):
    floats = {
        name: distribution
        for name, distribution in distributions(profile).items()
        if isinstance(distribution, FloatDistribution)
    }
    assert {name for name, distribution in floats.items() if distribution.log} == LOG


def test_quick_is_the_space_of_the_paper_at_a_quarter_of_its_size():
    paper, quick = distributions(PAPER), distributions(QUICK)
    assert paper.keys() == quick.keys()
    for name, share in {"model.d_model": 4, "model.n_layers": 4, "data.seq_len": 4}.items():
        assert paper[name].high == quick[name].high * share  # pyright: ignore
    assert quick["optim.learning_rate"].high == pytest.approx(0.04)  # pyright: ignore
    assert quick["data.batch_size"] == paper["data.batch_size"]


@given(st.integers(0, 2**31), st.sampled_from(sorted(PROFILES)))
def test_every_sampled_point_builds_and_is_found_again(seed: int, name: str):
    profile = PROFILES[name]
    space, trial = open_ended(profile), sampled(profile, seed)
    config = profile.baseline.with_values(space(trial))
    assert config.model.d_model % config.model.n_heads == 0
    assert locate(space, profile.baseline, config).params == trial.params


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("optim.learning_rate", 1.0), ("optim.beta1", 0.5), ("optim.warmup_fraction", 0.6),
        ("data.batch_size", 9), ("data.seq_len", 16), ("model.n_layers", 99),
        ("optim.eps", 1e-6), ("model.d_ff", 100), ("model.dropout", 0.9),
    ],
)  # fmt: skip
def test_points_outside_are_refused_by_name(path: str, value: Any):
    config = QUICK.baseline.with_values({path: value})
    with pytest.raises(ValueError, match=f"outside the search space: .*{path}"):
        locate(open_ended(QUICK), QUICK.baseline, config)


def test_a_head_of_another_width_is_refused_by_name():
    config = QUICK.baseline.with_values({"model.n_heads": 3})
    with pytest.raises(ValueError, match=r"model\.d_head is 32 and must be one of"):
        locate(open_ended(QUICK), QUICK.baseline, config)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_the_six_are_points_of_the_architectures_too(profile: Profile, protocol: str):
    space = load_space("architectures", profile)
    for config in reference_configurations(profile, protocol).values():
        again = profile.baseline.with_values(
            space(FixedTrial(locate(space, profile.baseline, config).params))
        )
        assert (again.model, again.optim, again.data) == (config.model, config.optim, config.data)


# What is only there with another value of another parameter.
CONDITIONS: dict[str, tuple[str, set[Any]]] = {
    "model.rope_base": ("model.positions", {"rope", "rope-full"}),
    "model.window": ("model.attention", {"window"}),
    "model.full_every": ("model.attention", {"window"}),
    "optim.muon_learning_rate": ("optim.optimizer", {"muon"}),
    "optim.muon_momentum": ("optim.optimizer", {"muon"}),
    "optim.cycles": ("optim.schedule", {"cyclical"}),
    "optim.decay_fraction": ("optim.schedule", {"warmup-stable-decay"}),
}


@given(st.integers(0, 2**31), st.sampled_from(sorted(PROFILES)))
def test_every_sampled_architecture_builds_has_what_applies_and_is_found_again(
    seed: int, name: str
):
    profile = PROFILES[name]
    space, trial = architectures(profile), sampled(profile, seed)
    config = profile.baseline.with_values(space(trial))
    assert locate(space, profile.baseline, config).params == trial.params
    for path, (other, values) in CONDITIONS.items():
        assert (path in trial.params) == (trial.params[other] in values)
    assert ("model.heads_per_kv" in trial.params) == (config.model.n_heads % 2 == 0)
    open_ended_has = {path for path in distributions(profile) if path not in CONDITIONS}
    assert open_ended_has <= trial.params.keys()


def test_a_gated_feed_forward_has_as_many_parameters():
    space = SPACES["architectures"](PAPER)
    plain, gated = (
        PAPER.baseline.with_values({"model.feed_forward": kind, "model.d_ff": d_ff})
        for kind, d_ff in (("silu", 1536), ("swiglu", 1024))
    )
    assert locate(space, PAPER.baseline, gated).params["model.feed_forward"] == "swiglu"
    assert plain.model.parameters == gated.model.parameters


OWN = """
def space(trial):
    rate = trial.suggest_float("optim.learning_rate", 1e-4, 1e-2, log=True)
    return {"optim.learning_rate": rate}
"""

BAD_SPACES = {
    "no_file": (None, "there is no file"),
    "syntax": ("def space(:", "cannot be run"),
    "no_function": ("x = 1", "has no function space"),
    "no_parameter": ("def space(trial):\n    return {}", "has no parameter"),
    "raises": ("def space(trial):\n    return 1 / 0", "division by zero"),
    "unknown_path": (OWN.replace('{"optim.learning_rate"', '{"optim.lr"'), "unknown key"),
    "own_name": (OWN.replace('float("optim.learning_rate"', 'float("lr"'), "a parameter 'lr'"),
    "budget": (OWN.replace('{"optim', '{"budget.steps": 9, "optim'), "sets budget.steps"),
}


@pytest.mark.parametrize("name", BAD_SPACES)
def test_a_space_that_cannot_be_used_is_told_with_its_reason(name: str, tmp_path: Path):
    text, message = BAD_SPACES[name]
    path = tmp_path / "own.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        load_space(f"{path}:space", QUICK)
    assert len(str(raised.value).splitlines()) == 1


def test_a_name_that_is_no_space_is_refused():
    with pytest.raises(ValueError, match="'wide': use open-ended, architectures or FILE"):
        load_space("wide", QUICK)


def test_a_space_of_ones_own(tmp_path: Path):
    (tmp_path / "own.py").write_text(OWN)
    space = load_space(f"{tmp_path}/own.py:space", QUICK)
    six = reference_configurations(QUICK, "as-run")
    assert locate(space, QUICK.baseline, six["high_lr"]).params == {"optim.learning_rate": 4e-3}
    with pytest.raises(ValueError, match=r"data\.batch_size is 16"):
        locate(space, QUICK.baseline, six["large_batch"])
    assert set(SIX) == set(six)


FREE = ["optim.learning_rate", "model.d_model"]


@given(st.integers(0, 10_000))
def test_in_a_reduced_space_only_what_is_free_varies(seed: int):
    around = QUICK.baseline.with_values({"optim.beta1": 0.85, "optim.schedule": "linear"})
    space = reduced(open_ended(QUICK), around, FREE)
    trial = sampled(QUICK, seed)
    config = around.with_values(space(trial))
    assert [*trial.params] == ["model.d_model", "optim.learning_rate"]
    changed = {path for path, value in config.values().items() if value != around.values()[path]}
    assert changed <= {*FREE, "model.d_ff", "model.n_heads"}
    assert locate(space, around, config).params == trial.params
    with pytest.raises(ValueError, match=r"optim\.beta1 is 0\.9.* only 0\.85"):
        locate(space, around, config.with_values({"optim.beta1": 0.9}))


def test_what_a_free_choice_brings_with_it_is_free_too():
    space = reduced(open_ended(QUICK), QUICK.baseline, ["optim.schedule"])
    seen = {name for seed in range(30) for name in _params(space, seed)}
    assert seen == {"optim.schedule", "optim.cycles", "optim.decay_fraction"}


def _params(space: Any, seed: int) -> dict[str, Any]:
    trial = sampled(QUICK, seed)
    space(trial)
    return trial.params


@pytest.mark.parametrize(
    ("values", "free", "message"),
    [
        ({}, ["model.d_ff"], r"--free model\.d_ff is no parameter of the space there: use some of"),
        ({"model.d_ff": 100}, ["optim.beta1"], r"model\.d_ff is 100, and .* only 384; try another"),
        (
            {"model.dropout": 0.5},
            ["optim.beta1"],
            r"--around names is outside the search space: .* 0\.5 .*model\.dropout",
        ),
    ],
)
def test_a_space_that_cannot_be_reduced_so_is_refused(
    values: dict[str, Any], free: list[str], message: str
):
    with pytest.raises(ValueError, match=message):
        reduced(open_ended(QUICK), QUICK.baseline.with_values(values), free)
