import itertools
import json
import resource
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as PluginEventAccumulator,
)
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import metadata
from tiny import exact_rows, tiny_config, tiny_spec, tiny_tokens, train

from quarterhour.data.tokens import TokenData
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.run_folder import Row, Status
from quarterhour.tune.run_reader import read_rows
from quarterhour.tune.training.event_file import EventFile
from quarterhour.tune.training.events import (
    LAYOUT,
    MEDIAN_SPEED_TAG,
    STATUS_NUMBERS,
    STATUS_TAG,
    TAGS,
    record_ending,
    tag_of,
)
from quarterhour.tune.training.recorder import Recorder

LAYERS = [f"grad_norm_layer{layer:02d}" for layer in (0, 1, 11)]
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
MEASURES = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        [*TAGS, *LAYERS, "flops", "window_steps"],
        st.floats(-LARGEST_FLOAT32, LARGEST_FLOAT32) | st.just(np.nan) | st.integers(0, 2**40),
    ),
)


@st.composite
def rows_of_a_trial(draw: st.DrawFn) -> list[Row]:
    """Rows with any measures, at rising steps."""
    steps = sorted(draw(st.sets(st.integers(1, 2_000), min_size=1, max_size=8)))
    tokens_per_step = draw(st.integers(1, 2**20))
    return [{"step": s, "tokens": s * tokens_per_step} | draw(MEASURES) for s in steps]


def spec_in(folder: Path) -> TrialSpec:
    spec = TrialSpec(name="any", config=tiny_config(), data_fingerprint="", folder=folder / "any")
    spec.write_config()
    return spec


def events_in(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def points(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    """Steps and values of a tag; none where it does not occur."""
    if tag not in events.Tags()["scalars"]:
        return []
    return [(point.step, point.value) for point in events.Scalars(tag)]


def hparams_of(folder: Path, tag: str) -> Any:
    events = PluginEventAccumulator(str(folder))
    events.Reload()
    return metadata._parse_plugin_data_as(
        events.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content, tag
    )


@given(rows=rows_of_a_trial(), resumed_at=st.integers(0, 8))
def test_events_give_back_every_row_to_float32_whether_resumed_or_not(
    rows: list[Row], resumed_at: int
):
    with tempfile.TemporaryDirectory() as folder:
        spec = spec_in(Path(folder))
        for begin in (0, min(resumed_at, len(rows))):
            recorder = Recorder(spec, rows[begin - 1]["step"] if begin else 0)
            for row in rows[begin:]:
                recorder.write(row)
            recorder.close()
        written, events = read_rows(spec.folder), events_in(spec.folder)
    assert len(written) == len(rows)
    for name in [*TAGS, *LAYERS]:
        values = [(row, np.float32(row[name])) for row in written if name in row]
        by_step = [(row["step"], value) for row, value in values]
        np.testing.assert_equal(points(events, tag_of(name) or ""), by_step)
        if name.endswith(("_loss", "_per_byte")):
            tag = (tag_of(name) or "").replace("loss/", "loss_by_tokens/")
            by_tokens = [(row["tokens"], value) for row, value in values]
            np.testing.assert_equal(points(events, tag), by_tokens)


def test_nothing_is_logged_twice_but_losses_by_tokens(tmp_path: Path):
    spec = spec_in(tmp_path)
    recorder = Recorder(spec, 0)
    recorder.write({"step": 1, "tokens": 64} | dict.fromkeys([*TAGS, *LAYERS, "flops"], 1.0))
    recorder.close()
    tags = events_in(spec.folder).Tags()["scalars"]
    by_tokens = [tag for tag in tags if tag.startswith("loss_by_tokens/")]
    assert len(by_tokens) == 5
    others = {STATUS_TAG, MEDIAN_SPEED_TAG}
    assert len(tags) == len(set(tags)) == len(TAGS) + len(LAYERS) + len(by_tokens) + len(others)


def test_the_table_has_every_hyperparameter_before_the_first_row(tmp_path: Path):
    domains = {"optim.learning_rate": [1e-3, 3e-3, 1e-2], "precision": ["bf16", "fp32"]}
    (tmp_path / "experiment.json").write_text(json.dumps({"domains": domains}))
    spec = spec_in(tmp_path / "0001")
    Recorder(spec, 0).close()
    shown = hparams_of(spec.folder, "session_start_info").hparams
    settings = {path for path, value in spec.config.values().items() if value is not None}
    assert set(shown) == settings | {"origin"}
    assert shown["origin"].string_value == "any"
    assert "budget.max_steps" not in shown
    assert shown["optim.learning_rate"].number_value == 3e-3
    assert shown["precision"].string_value == "fp32"
    assert {value.WhichOneof("kind") for value in shown.values()} <= {
        "number_value", "string_value", "bool_value"
    }  # fmt: skip
    experiment = hparams_of(spec.folder, "experiment")
    infos = {info.name: info for info in experiment.hparam_infos}
    assert set(infos) == set(shown)
    assert [path for path, info in infos.items() if info.differs] == ["optim.learning_rate"]
    interval = infos["optim.learning_rate"].domain_interval
    assert (interval.min_value, interval.max_value) == (1e-3, 1e-2)
    assert list(infos["precision"].domain_discrete) == ["bf16", "fp32"]
    metrics = [info.display_name for info in experiment.metric_infos]
    assert metrics == [
        "heldout_loss", "status", "eval_loss", "train_loss", "tokens_per_second",
        "peak_memory_bytes",
    ]  # fmt: skip


FIVE = [
    *("optim.learning_rate", "data.batch_size", "data.seq_len", "model.d_model", "model.n_layers")
]


@pytest.mark.parametrize(
    ("differing", "ticked"),
    [
        (["budget.steps", "budget.report_every", "model.d_ff", "optim.beta1", *FIVE], FIVE),
        (["budget.steps", "optim.beta1", "model.dropout"], ["optim.beta1", "model.dropout"]),
    ],
)
def test_what_matters_comes_first_and_what_follows_from_it_last(
    tmp_path: Path, differing: list[str], ticked: list[str]
):
    domains = {path: [1, 2] if path in differing else [1] for path in tiny_config().values()}
    (tmp_path / "experiment.json").write_text(json.dumps({"domains": domains}))
    spec = spec_in(tmp_path / "0001")
    Recorder(spec, 0).close()
    infos = hparams_of(spec.folder, "experiment").hparam_infos
    names = [info.name for info in infos]
    assert [info.name for info in infos if info.differs] == ticked
    assert names[:5] == FIVE
    followers = ["model.n_heads", "model.d_ff", "model.vocab_size", "precision", "seed"]
    assert names[-9:-4] == followers
    assert {name.split(".")[0] for name in names[-4:]} == {"budget"}
    assert [info.name for info in infos if not info.WhichOneof("domain")] == ["origin"]


def test_the_tables_speed_is_the_median_of_all_windows(tmp_path: Path):
    spec = spec_in(tmp_path)
    recorder = Recorder(spec, 0)
    speeds = [1.0, 30.0, 20.0, 40.0, 5.0]
    for step, speed in enumerate(speeds, start=1):
        row = {"step": step, "tokens": step, "tokens_per_second": speed}
        recorder.write(row | ({"eval_loss": 1.0} if step in (3, 5) else {}))
    recorder.close()
    Recorder(spec, 5).close()
    assert points(events_in(spec.folder), MEDIAN_SPEED_TAG) == [(3, 20.0), (5, 20.0)]
    assert points(events_in(spec.folder), "throughput/tokens_per_second")[-1] == (5, 5.0)
    tags = [info.name.tag for info in hparams_of(spec.folder, "experiment").metric_infos]
    assert MEDIAN_SPEED_TAG in tags
    assert "throughput/tokens_per_second" not in tags


@pytest.mark.parametrize("name", ["high_lr", "0001"])
def test_the_page_of_the_six_has_tags_that_only_they_write(tmp_path: Path, name: str):
    spec = tiny_spec(tmp_path, tiny_tokens(tmp_path), name)
    spec.write_config()
    recorder = Recorder(spec, 0)
    recorder.write({"step": 1, "tokens": 64, "train_loss": 3.0})
    recorder.write({"step": 2, "tokens": 128, "heldout_loss": 2.0})
    recorder.close()
    events = events_in(spec.folder)
    is_of_six = name == "high_lr"
    assert points(events, "six_configurations/heldout") == [(2, 2.0)] * is_of_six
    assert points(events, "six_configurations/heldout_by_tokens") == [(128, 2.0)] * is_of_six
    charts = LAYOUT["Six configurations alone"].values()
    assert all(tag.startswith("six_configurations/") for _, tags in charts for tag in tags)


@pytest.mark.parametrize("status", [status for status in Status if status.ended])
def test_a_column_tells_how_a_trial_ended(status: Status, tmp_path: Path):
    spec = spec_in(tmp_path)
    recorder = Recorder(spec, 0)
    recorder.write({"step": 3, "tokens": 3, "train_loss": 1.0})
    recorder.close()
    assert points(events_in(spec.folder), STATUS_TAG) == [(0, 0.0)]
    record_ending(spec.folder, status)
    assert points(events_in(spec.folder), STATUS_TAG) == [(0, 0.0), (3, STATUS_NUMBERS[status])]
    assert len(set(STATUS_NUMBERS.values()) | {0}) == 1 + len(STATUS_NUMBERS)
    Recorder(spec, 3).close()
    assert points(events_in(spec.folder), STATUS_TAG) == [(0, 0.0)], "it runs again"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    return tiny_tokens(tmp_path_factory.mktemp("corpus"))


def test_a_reader_that_follows_a_resumed_trial_has_each_point_once(
    tokens: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("quarterhour.tune.training.checkpoint.CHECKPOINT_SECONDS", -1.0)
    spec = tiny_spec(tmp_path, tokens)
    train(spec, tokens, rows=7)
    follower = PluginEventAccumulator(str(spec.folder))  # TensorBoard's own
    follower.Reload()
    assert len(follower.Tensors("loss/train")) == 7
    time.sleep(1)  # it goes by the names of the files, which have the second in them
    train(spec, tokens)
    follower.Reload()
    rows = read_rows(spec.folder)
    evaluated = [row["step"] for row in rows if "eval_loss" in row]
    for tag, steps in {
        "loss/train": [row["step"] for row in rows],
        "loss_by_tokens/train": [row["tokens"] for row in rows],
        "samples/text_summary": evaluated,
        "gradients/layer01": evaluated,
    }.items():
        assert [point.step for point in follower.Tensors(tag)] == steps
    assert points(events_in(spec.folder), STATUS_TAG) == [(0, 0), (20, STATUS_NUMBERS["COMPLETE"])]


def test_a_sample_is_shown_with_its_prompt_and_as_it_is(tmp_path: Path):
    spec = spec_in(tmp_path)
    recorder = Recorder(spec, 0)
    recorder.write({"step": 1, "tokens": 64})
    recorder.write_samples([{"prompt": "Once", "continuation": " *upon*\n\n# <b>a</b>"}])
    recorder.close()
    shown = events_in(spec.folder).Tensors("samples/text_summary")[0].tensor_proto.string_val[0]
    assert shown.decode() == "**Once** …\n\n     *upon*\n    \n    # <b>a</b>\n"


def test_a_clock_that_goes_back_changes_no_row_and_no_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tokens = tiny_tokens(tmp_path)
    steady, spec = (tiny_spec(tmp_path, tokens, name) for name in ("steady", "back"))
    train(steady, tokens)
    hours = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 1.8e9 - 3_600 * next(hours))
        train(spec, tokens, rows=4)
        train(spec, tokens)
        record_ending(spec.folder, Status.COMPLETE)
    assert next(hours) > 4
    assert exact_rows(spec.folder) == exact_rows(steady.folder)
    for tag in ("loss/train", "loss/heldout"):
        assert points(events_in(spec.folder), tag) == points(events_in(steady.folder), tag)


def test_a_link_or_another_trials_file_that_is_named_like_events_is_not_emptied(tmp_path: Path):
    spec = spec_in(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "events").write_text("another trial's")
    (spec.folder / "events.out.tfevents.1").symlink_to(tmp_path / "mine.txt")
    (spec.folder / "events.out.tfevents.2").hardlink_to(tmp_path / "events")
    (spec.folder / "events.out.tfevents.3").write_text("its own")
    Recorder(spec, 0).close()
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert (tmp_path / "events").read_text() == "another trial's"
    assert (spec.folder / "events.out.tfevents.3").read_text() == ""


def test_a_full_disk_is_told_to_who_adds_an_event_and_to_no_thread(tmp_path: Path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    threads = threading.active_count()
    file = EventFile(tmp_path)
    assert threading.active_count() == threads
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        file.add_event(Event(file_version="x" * 200), 1)
        with pytest.raises(OSError, match="too large"):
            file.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    file.close()
