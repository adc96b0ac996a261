import json
import os
import shutil
import stat
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_config

from quarterhour.tune.ledger import (
    Result,
    TrialSpec,
    adopt,
    claimed,
    claims_folder,
    finished_folders,
    prepare_trials,
    read_result,
    read_spec,
)
from quarterhour.tune.run_folder import CHECKPOINT, CONFIG, METRICS, RESULT, Status
from quarterhour.tune.run_reader import provenance, read_rows

ROW = {"step": 20, "heldout_loss": 2.5}


def spec_in(run: Path, name: str = "tiny", **values: object) -> TrialSpec:
    """A trial in a run folder, which is made."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "experiment.json").write_text("{}")
    config = tiny_config(**values)
    return TrialSpec(name=name, config=config, data_fingerprint="data", folder=run / name)


def finish(spec: TrialSpec, status: Status = Status.COMPLETE, **ending: object) -> None:
    spec.write_config()
    (spec.folder / METRICS).write_text(json.dumps(ROW) + "\n")
    spec.write_result(status, ROW, **ending)


ENDINGS = [
    ({"status": Status.COMPLETE}, False, True),
    ({"status": Status.PRUNED, "reason": "worse"}, False, False),
    ({"status": Status.INFEASIBLE, "reason": "large"}, False, False),
    ({"status": Status.FAILED, "reason": "nan", "diverged": True}, False, True),
    ({"status": Status.FAILED, "reason": "killed"}, True, False),
]


@pytest.mark.parametrize(("ending", "crashed", "final"), ENDINGS)
def test_only_complete_and_diverged_trials_are_final_and_only_crashed_ones_tried_again(
    ending: dict[str, object], crashed: bool, final: bool, tmp_path: Path
):
    spec = spec_in(tmp_path / "run")
    finish(spec, **ending)  # pyright: ignore
    result = spec.result()
    assert result
    assert (result.crashed, result.final) == (crashed, final)
    assert result == Result(key=spec.key, parameters=135_248, metrics=ROW, **ending)  # pyright: ignore
    assert (spec.key in finished_folders(tmp_path)) == final


@pytest.mark.parametrize("status", [Status.FAILED, Status.PRUNED, Status.INFEASIBLE])
def test_an_ending_without_a_reason_is_none(status: Status):
    with pytest.raises(ValueError, match=f"a {status} result needs a reason"):
        Result(status=status, key="k", parameters=1, metrics=ROW)


def test_a_complete_result_needs_metrics():
    with pytest.raises(ValueError, match="needs metrics"):
        Result(status=Status.COMPLETE, key="k", parameters=1, metrics={})


def test_an_adopted_trial_has_the_others_files_and_its_own_name(tmp_path: Path):
    source, spec = spec_in(tmp_path / "one"), spec_in(tmp_path / "two", "mine")
    finish(source)
    (source.folder / "checkpoint.pt").write_text("weights")
    spec = replace(spec, origin="sampler")
    spec.write_config()
    (spec.folder / METRICS).write_text("{}\n")
    adopt(spec, source.folder)
    for name in ("checkpoint.pt", METRICS):
        assert (spec.folder / name).samefile(source.folder / name)
    assert read_spec(spec.folder) == spec
    result, theirs = spec.result(), source.result()
    assert theirs
    assert result == replace(theirs, adopted_from=str(source.folder))
    third = spec_in(tmp_path / "three")
    adopt(third, spec.folder)
    assert third.result() == result
    assert theirs.adopted_from is None
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["experiment.json", "mine"]


def test_where_files_cannot_be_linked_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr("os.link", refuse)
    source, spec = spec_in(tmp_path / "one"), spec_in(tmp_path / "two")
    finish(source)
    adopt(spec, source.folder)
    assert read_rows(spec.folder) == [ROW]
    assert not (spec.folder / METRICS).samefile(source.folder / METRICS)


def test_what_another_machine_did_in_a_time_is_not_adopted(tmp_path: Path):
    asked = {"budget__seconds": 60.0, "budget__steps": 0}
    source = spec_in(tmp_path / "one", **asked | {"budget__steps": 77})
    spec = spec_in(tmp_path / "two", **asked)
    assert source.key == spec.key
    with claimed(source):
        finish(source)
    assert prepare_trials([spec], tmp_path) == [spec]
    with claimed(spec):
        assert not spec.result()


def test_an_adoption_that_is_cut_off_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source, spec = spec_in(tmp_path / "one"), spec_in(tmp_path / "two", "mine")
    finish(source)
    spec.write_config()
    with monkeypatch.context() as patch:
        patch.setattr(TrialSpec, "write_config", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            adopt(spec, source.folder)
    assert read_spec(spec.folder) == spec
    assert not spec.result()
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["experiment.json", "mine"]


def test_a_trial_of_the_same_key_waits_and_takes_what_the_first_came_to(tmp_path: Path):
    first, second = spec_in(tmp_path / "one"), spec_in(tmp_path / "two")
    order: list[str] = []
    waiting = threading.Event()

    def train_second() -> None:
        waiting.set()
        with claimed(second):
            order.append("second" if second.result() else "second trains")

    thread = threading.Thread(target=train_second)
    with claimed(first):
        thread.start()
        waiting.wait()
        thread.join(timeout=0.3)
        order.append("first")
        finish(first)
    thread.join()
    assert order == ["first", "second"]
    result = second.result()
    assert result
    assert result.adopted_from == str(first.folder)


def test_a_key_that_was_finished_before_is_adopted_though_nobody_holds_it(tmp_path: Path):
    first, second = spec_in(tmp_path / "one"), spec_in(tmp_path / "two")
    with claimed(second):
        second.write_config()  # and is interrupted
    with claimed(first):
        finish(first)
    with claimed(second):
        assert second.result()
    with claimed(spec_in(tmp_path / "three")):
        assert (tmp_path / "three/tiny/result.json").exists()


@pytest.mark.parametrize(("ending", "_crashed", "final"), ENDINGS)
def test_only_what_is_final_is_taken_from_another(
    ending: dict[str, object], _crashed: bool, final: bool, tmp_path: Path
):
    first, second = spec_in(tmp_path / "one"), spec_in(tmp_path / "two")
    with claimed(first):
        finish(first, **ending)  # pyright: ignore
    with claimed(second):
        assert bool(second.result()) == final
    assert first.result()


def test_a_holder_that_is_gone_leaves_the_key_to_the_next(tmp_path: Path):
    first, second = spec_in(tmp_path / "one"), spec_in(tmp_path / "two")
    with claimed(first):
        finish(first)
    shutil.rmtree(tmp_path / "one")
    with claimed(second):
        assert second.result() is None


def test_another_key_waits_for_nobody(tmp_path: Path):
    first, other = spec_in(tmp_path / "one"), spec_in(tmp_path / "two", seed=1)
    with claimed(first), claimed(other):
        assert other.result() is None


def test_prepare_trials_adopts_what_is_finished_and_forgets_what_failed(tmp_path: Path):
    done, failed, new = (
        spec_in(tmp_path / "mine", name, seed=seed)
        for seed, name in enumerate(["done", "failed", "new"])
    )
    finish(spec_in(tmp_path / "other"))
    finish(failed, Status.FAILED, reason="killed")
    assert prepare_trials([done, failed, new], tmp_path) == [failed, new]
    assert failed.result() is None
    result = done.result()
    assert result
    assert result.adopted_from == str(tmp_path / "other/tiny")
    assert prepare_trials([done], tmp_path) == []


def test_folders_that_are_being_written_are_not_finished(tmp_path: Path):
    spec = spec_in(tmp_path / "run", ".tiny.123")
    finish(spec)
    assert finished_folders(tmp_path) == {}
    assert read_result(spec.folder)


def test_a_failure_has_the_last_row_and_the_errors_last_line(tmp_path: Path):
    spec = spec_in(tmp_path / "run")
    spec.write_config()
    spec.write_failure()
    result = spec.result()
    assert result
    assert (result.metrics, result.reason) == (
        {},
        "its process died, perhaps for want of memory",
    )
    (spec.folder / METRICS).write_text(json.dumps(ROW) + '\n{"step": 2')
    (spec.folder / "error.txt").write_text("Traceback\n  …\nOSError: no space\n\n")
    spec.write_failure()
    result = spec.result()
    assert result
    assert (result.metrics, result.reason, result.crashed) == (ROW, "OSError: no space", True)
    spec.clear_error()
    spec.write_failure()
    assert "its process died" in (spec.folder / "result.json").read_text()


def test_rows_are_read_without_a_cut_off_last_one_or_only_those_with_a_measure(tmp_path: Path):
    rows = [{"step": 1, "heldout_loss": 3.0}, {"step": 2}, {"step": 3, "heldout_loss": 2.0}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert read_rows(tmp_path) == []
    (tmp_path / METRICS).write_text(text + text[:20])
    assert read_rows(tmp_path) == rows
    assert read_rows(tmp_path, having="heldout_loss") == [rows[0], rows[2]]
    (tmp_path / METRICS).write_text(text[:-1])
    assert read_rows(tmp_path) == rows[:2]


def test_rays_own_results_below_the_runs_are_no_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    ray = tmp_path / "ray_results/tune_1/trial_2"
    ray.mkdir(parents=True)
    (ray / RESULT).write_text('{"a": 1}\n{"a": 2}\n')
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / RESULT)
    finish(spec_in(tmp_path / "run"))
    assert list(finished_folders(tmp_path).values()) == [tmp_path / "run/tiny"]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("content", ["", '{"status"', "[]", "{}", "[" * 100_000])
@pytest.mark.parametrize("name", [RESULT, METRICS])
def test_a_damaged_trial_elsewhere_is_told_and_not_adopted(
    content: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    theirs, mine = spec_in(tmp_path / "one"), spec_in(tmp_path / "two")
    with claimed(theirs):
        finish(theirs)
    (theirs.folder / name).write_text(content + "\n")
    assert prepare_trials([mine], tmp_path) == [mine]
    with claimed(mine):
        assert not mine.result()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"quarterhour: {theirs.folder / name}")


def test_a_damaged_trial_of_a_run_is_left_alone_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    specs = [spec_in(tmp_path / "run", str(seed), seed=seed) for seed in range(3)]
    for spec in specs:
        finish(spec)
    specs[1].clear_result()
    (specs[0].folder / RESULT).write_text("")
    assert prepare_trials(specs, tmp_path) == [specs[1]]
    assert (specs[0].folder / RESULT).read_text() == ""
    ending = specs[0].ending()
    assert ending
    assert ending.status is Status.FAILED
    assert ending.reason
    assert ending.reason.startswith("result.json cannot be read (Expecting value")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_finished_trial_whose_configuration_was_deleted_has_it_again(tmp_path: Path):
    spec = spec_in(tmp_path / "run")
    finish(spec)
    (spec.folder / CONFIG).unlink()
    assert prepare_trials([spec], tmp_path) == []
    assert read_spec(spec.folder) == spec


def test_a_process_that_died_over_damaged_rows_has_failed(tmp_path: Path):
    spec = spec_in(tmp_path / "run")
    spec.write_config()
    (spec.folder / METRICS).write_text("damaged\n")
    (spec.folder / "error.txt").write_bytes(b"OSError: \xff")
    spec.write_failure()
    result = spec.result()
    assert result
    assert result.crashed


def test_adoption_takes_plain_files_that_a_trial_has_and_follows_no_link(tmp_path: Path):
    source, spec = spec_in(tmp_path / "one"), spec_in(tmp_path / "two")
    finish(source)
    private = tmp_path / "private"
    private.mkdir()
    (private / "key").write_text("secret")
    (source.folder / CHECKPOINT).symlink_to(private / "key")
    (source.folder / "events.out.tfevents.1").symlink_to(private / "key")
    (source.folder / "folder").symlink_to(private)
    (source.folder / "loop").symlink_to(".")
    (source.folder / "notes.txt").write_text("theirs")
    (tmp_path / "away").symlink_to(private)
    (tmp_path / "loop").symlink_to(".")
    assert prepare_trials([spec], tmp_path) == []
    assert sorted(path.name for path in spec.folder.iterdir()) == [CONFIG, METRICS, RESULT]
    assert (private / "key").stat().st_nlink == 1


def test_where_a_trial_was_trained_is_its_own_also_where_it_is_adopted(tmp_path: Path):
    old, new = ({"versions": {"torch": number}, "hardware": {}} for number in ("1", "2"))
    begun = replace(spec_in(tmp_path / "one"), provenance=old)
    finish(begun)
    gone_on = replace(begun, provenance=new)
    gone_on.write_config(provenance(begun.folder))
    assert provenance(begun.folder) == [old, new]
    adopter = replace(spec_in(tmp_path / "two"), provenance={"versions": {"torch": "3"}})
    adopt(adopter, begun.folder)
    assert provenance(adopter.folder) == [old, new]
    replace(begun, provenance=new).write_config()
    assert provenance(begun.folder) == [new]


def test_who_may_write_to_the_folder_of_all_runs_may_claim(tmp_path: Path):
    group, umask = 4242 if os.geteuid() == 0 else os.getegid(), os.umask(0o022)
    try:
        os.chown(tmp_path, -1, group)
        tmp_path.chmod(0o2775)
        with claimed(spec := spec_in(tmp_path / "run")):
            pass
    finally:
        os.umask(umask)
    folder = tmp_path / ".trials"
    assert (stat.S_IMODE(folder.stat().st_mode), folder.stat().st_gid) == (0o2775, group)
    lock = (folder / f"{spec.key}.lock").stat()
    assert (stat.S_IMODE(lock.st_mode), lock.st_gid) == (0o664, group)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_second_user_without_rights_is_told_at_once():
    with tempfile.TemporaryDirectory() as runs:
        Path(runs).chmod(0o755)
        claims_folder(Path(runs))
        child = os.fork()
        if not child:
            os.setuid(65_534)
            try:
                claims_folder(Path(runs))
            except PermissionError as error:
                os._exit(error.filename == f"{runs}/.trials")
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
