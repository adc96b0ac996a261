import tracemalloc
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quarterhour.data.batches import BatchConfig, Batches
from quarterhour.data.tokens import TokenData
from quarterhour.search_spaces.profiles import PROFILES
from quarterhour.search_spaces.reference import reference_configurations
from quarterhour.tune.training.memory import TOKEN_BYTES

N_TRAIN, N_HELDOUT = 400, 101


def numbered_tokens(n_train: int = N_TRAIN, n_heldout: int = N_HELDOUT) -> Any:
    """Tokens that tell their place: training 0, 1, 2, …, held-out from 10,000 on."""
    train, heldout = np.arange(n_train), 10_000 + np.arange(n_heldout)
    return SimpleNamespace(train=train.astype(np.uint16), heldout=heldout.astype(np.uint16))


def batches(batch_size: int = 4, seq_len: int = 8, seed: int = 0) -> Batches:
    return Batches(numbered_tokens(), BatchConfig(batch_size=batch_size, seq_len=seq_len), seed)


def first_tokens(made: Batches, steps: range) -> list[int]:
    return [int(start) for step in steps for start in made.batch_at(step)[:, 0]]


def test_a_batch_is_a_function_of_seed_and_step():
    made, again = batches(), batches()
    backwards = {step: again.batch_at(step) for step in (200, 99, 98, 5, 0)}
    for step in (0, 5, 98, 99, 200):
        assert (made.batch_at(step) == backwards[step]).all()
    assert (made.batch_at(0) != batches(seed=1).batch_at(0)).any()


@given(seed=st.integers(0, 2**40), steps=st.lists(st.integers(0, 500), min_size=1, max_size=8))
def test_it_is_so_in_any_order_of_steps_and_after_anything_else(seed: int, steps: list[int]):
    used = batches(seed=seed)
    in_order = {step: used.batch_at(step) for step in sorted(steps)}
    list(chain(used.heldout(), used.leaky_validation(3)))
    for step in steps:
        assert (used.batch_at(step) == in_order[step]).all()
        assert (batches(seed=seed).batch_at(step) == in_order[step]).all()


def test_the_order_of_windows_does_not_depend_on_the_size_of_a_batch():
    ones, fives = batches(batch_size=1), batches(batch_size=5)
    assert first_tokens(ones, range(500)) == first_tokens(fives, range(100))


def test_windows_are_drawn_as_by_numpys_permutation_whatever_their_bytes():
    for n_train in (200, 300, 2**16 + 8, 2**16 + 9):
        made = Batches(numbered_tokens(n_train), BatchConfig(batch_size=4, seq_len=8), seed=3)
        windows = np.random.default_rng([3, 0]).permutation(n_train - 8)
        validation, training = np.split(windows, [int(len(windows) * 0.1)])
        for epoch in (0, 2, 1):
            order = np.random.default_rng([3, 1, epoch]).permutation(training)
            place = epoch * len(training)
            step, skipped = -(-place // 4), -place % 4
            assert (made.starts_at(step) == order[skipped : skipped + 4]).all()
        leaky = np.concatenate([batch[:, 0] for batch in made.leaky_validation(3)])
        assert (leaky == validation[:12] % 2**16).all()


def test_of_a_large_corpus_only_the_windows_places_are_held():
    tokens = numbered_tokens(2_000_000)
    tracemalloc.start()
    made = Batches(tokens, BatchConfig(batch_size=4, seq_len=8), seed=0)
    assert tracemalloc.get_traced_memory()[1] < 10_000, "a configuration is checked by one"
    made.batch_at(0)
    list(made.leaky_validation(20))
    assert tracemalloc.get_traced_memory()[1] < 1.01 * TOKEN_BYTES * 2_000_000
    tracemalloc.stop()


def test_windows_are_consecutive_tokens():
    batch = batches().batch_at(3)
    assert batch.shape == (4, 9)
    assert batch.dtype == np.int64
    assert (np.diff(batch, axis=1) == 1).all()


def test_an_epoch_draws_every_training_window_once_then_shuffles_anew():
    made = batches()
    n_windows = N_TRAIN - 8 - int((N_TRAIN - 8) * 0.1)
    drawn = first_tokens(made, range(200))
    assert len(set(drawn[:n_windows])) == n_windows
    assert set(drawn[n_windows : 2 * n_windows]) == set(drawn[:n_windows])
    assert drawn[n_windows : 2 * n_windows] != drawn[:n_windows]


def test_seeds_differ_in_split_and_order():
    one, other = batches(seed=0), batches(seed=1)
    assert sorted(first_tokens(one, range(88))) != sorted(first_tokens(other, range(88)))
    leaky = [next(made.leaky_validation(1)) for made in (one, other)]
    assert (leaky[0] != leaky[1]).any()


def test_every_window_is_either_a_training_or_a_leaky_one():
    made = batches(batch_size=1)
    training = first_tokens(made, range(N_TRAIN - 8 - 39))
    leaky = [int(batch[0, 0]) for batch in made.leaky_validation(10**6)]
    assert len(leaky) == 39
    assert sorted(training + leaky) == list(range(N_TRAIN - 8))


def test_leaky_windows_are_not_drawn_but_overlap_what_is():
    made = batches()
    training = set(first_tokens(made, range(100)))
    leaky = [int(start) for batch in made.leaky_validation(5) for start in batch[:, 0]]
    assert len(leaky) == 20
    assert not training & set(leaky)
    assert any(start + 1 in training for start in leaky)
    assert leaky == [int(s) for batch in made.leaky_validation(5) for s in batch[:, 0]]


@given(
    batch_size=st.integers(1, 12), seq_len=st.integers(1, 60), n_heldout=st.integers(2, N_HELDOUT)
)
def test_every_heldout_token_but_the_first_is_a_target_once(
    batch_size: int, seq_len: int, n_heldout: int
):
    config = BatchConfig(batch_size=batch_size, seq_len=seq_len)
    made = Batches(numbered_tokens(n_heldout=n_heldout), config, seed=0)
    targets = sorted(chain.from_iterable(batch[:, 1:].ravel() for batch in made.heldout()))
    assert targets == [10_000 + place for place in range(1, n_heldout)]


@given(seed=st.integers(0, 5), step=st.integers(0, 300))
def test_no_heldout_token_is_ever_in_a_training_or_leaky_batch(seed: int, step: int):
    made = batches(seed=seed)
    assert made.batch_at(step).max() < N_TRAIN
    assert max(batch.max() for batch in made.leaky_validation(99)) < N_TRAIN


@pytest.mark.parametrize("profile", PROFILES)
def test_all_configurations_are_scored_on_the_same_heldout_tokens(profile: str, tokens: TokenData):
    for config in reference_configurations(PROFILES[profile], "as-run").values():
        made = Batches(tokens, config.data, seed=0)
        targets = np.concatenate([batch[:, 1:].ravel() for batch in made.heldout()])
        assert (np.sort(targets) == np.sort(tokens.heldout[1:])).all()


@pytest.mark.parametrize("config", [{"seq_len": 400}, {"seq_len": 390}, {"batch_size": 40}])
def test_a_corpus_too_small_for_one_batch_is_refused(config: dict[str, int]):
    asked = replace(BatchConfig(batch_size=4, seq_len=8), **config)
    with pytest.raises(ValueError, match=f"400 training tokens.*{next(iter(config.values()))}"):
        Batches(numbered_tokens(), asked, seed=0)


def test_the_smallest_corpus_that_is_enough_has_a_batch_of_each_kind():
    made = batches(batch_size=4, seq_len=360)
    assert made.batch_at(0).shape == (4, 361)
    assert len(list(made.leaky_validation(20))) == 1
    with pytest.raises(ValueError, match="too few"):
        batches(batch_size=4, seq_len=361)


@pytest.mark.parametrize("n_heldout", [0, 1])
def test_a_heldout_set_without_a_target_is_refused(n_heldout: int):
    with pytest.raises(ValueError, match="a single token, and none after it"):
        Batches(numbered_tokens(n_heldout=n_heldout), BatchConfig(batch_size=4, seq_len=8), seed=0)


@pytest.mark.parametrize("field", ["batch_size", "seq_len"])
def test_sizes_below_one_are_refused(field: str):
    with pytest.raises(ValueError, match=rf"data\.{field} is 0"):
        BatchConfig(**{"batch_size": 1, "seq_len": 1, field: 0})
