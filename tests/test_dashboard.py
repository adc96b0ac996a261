"""optuna-dashboard on a search: what it answers, to whom, and that it changes nothing."""

import csv
import io
import json
import os
from datetime import datetime
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import pytest
from searches import Driver, optuna_trials, tiny_search

from quarterhour.tune.run_folder import METRICS, STUDY, Status
from quarterhour.tune.run_reader import read_rows
from quarterhour.tune.search.dashboard import Dashboard, serve, study_of
from quarterhour.tune.search.journal import open_storage
from quarterhour.tune.search.settings import Search

OWN_HOST = "127.0.0.1:8080"


def ask(dashboard: Dashboard, path: str, method: str = "GET", host: str | None = OWN_HOST):
    """Status and body of an answer."""
    environ: dict[str, object] = {"PATH_INFO": path, "REQUEST_METHOD": method}
    setup_testing_defaults(environ)  # pyright: ignore
    environ.pop("HTTP_HOST")
    if host is not None:
        environ["HTTP_HOST"] = host
    statuses: list[str] = []
    body = dashboard(environ, lambda status, *_: statuses.append(status))
    answer = b"".join(body)
    if close := getattr(body, "close", None):
        close()
    return int(statuses[0].split()[0]), answer


def shown(dashboard: Dashboard) -> list[str]:
    """States of all trials, without the pages' cache."""
    code, body = ask(dashboard, "/csv/0")
    assert code == 200
    return [row["State"] for row in csv.DictReader(io.StringIO(body.decode()))]


@pytest.fixture
def search(tmp_path: Path) -> Search:
    search = tiny_search(tmp_path)
    Driver(search, trials=3).run()
    return search


def test_it_shows_the_study(search: Search):
    dashboard = Dashboard(search.folder, open_storage(search.folder))
    code, body = ask(dashboard, "/api/studies")
    assert code == 200
    (study,) = json.loads(body)["study_summaries"]
    assert study["study_name"] == "search"
    assert ask(dashboard, "/dashboard")[0] == 200
    assert ask(dashboard, "/dashboard", "HEAD")[0] == 200
    assert ask(dashboard, "/api/studies/0")[0] == 200


def test_it_tells_of_each_trial_when_it_ran_where_it_is_from_and_how_it_ended(tmp_path: Path):
    search = tiny_search(tmp_path, scheduler="asha")
    Driver(search, trials=12).run()
    for number, spec in enumerate(search.trials()):
        (spec.folder / f"events.out.tfevents.{1_700_000_000 + 100 * number}.host.1.0").touch()
        os.utime(spec.folder / METRICS, (1_700_000_060 + 100 * number,) * 2)
    for seed, loss in ((1, 3.25), (2, 3.5)):
        folder = search.folder / "fresh_seeds/0001" / f"seed{seed}"
        (fresh,) = (t for t in search.fresh_trials(search.trials()[1:2]) if t.folder == folder)
        fresh.write_config()
        fresh.write_result(Status.COMPLETE, {"step": 8, "heldout_loss": loss})
    dashboard = Dashboard(search.folder, study_of(search))
    (summary,) = json.loads(ask(dashboard, "/api/studies")[1])["study_summaries"]
    study = json.loads(ask(dashboard, f"/api/studies/{summary['study_id']}")[1])
    assert study["objective_names"] == ["heldout_loss"]
    states = [trial["state"] for trial in study["trials"]]
    assert "Pruned" in states
    for spec, trial in zip(search.trials(), study["trials"], strict=True):
        told = {attribute["key"]: attribute["value"] for attribute in trial["user_attrs"]}
        result = spec.result()
        assert result
        assert (told["origin"], told["seed"]) == (spec.origin, "0")
        assert told["status"] == result.status
        assert ("reason" in told) == (result.status is Status.PRUNED)
        assert trial["values"] == [read_rows(spec.folder)[-1]["heldout_loss"]]
        began, ended = (
            datetime.fromisoformat(trial[name]).timestamp()
            for name in ("datetime_start", "datetime_complete")
        )
        assert began == 1_700_000_000 + 100 * int(spec.name)
        assert ended - began == 60
        note = "- fresh seed 1: heldout_loss 3.25\n- fresh seed 2: heldout_loss 3.5"
        assert trial["note"]["body"] == (note if spec.name == "0001" else "")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/studies/0"), ("POST", "/api/studies"), ("PUT", "/api/studies/0/note"),
        ("PATCH", "/api/studies/0"), ("OPTIONS", "/api/studies"), ("POST", "/api/trials/0/tell"),
    ],
)  # fmt: skip
def test_it_refuses_what_would_write(method: str, path: str, search: Search):
    before = (search.folder / STUDY).read_bytes()
    dashboard = Dashboard(search.folder, open_storage(search.folder))
    assert ask(dashboard, path, method)[0] == 405
    assert (search.folder / STUDY).read_bytes() == before
    assert shown(dashboard) == ["COMPLETE"] * 3


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", None, "10.0.0.1:80"]
)
def test_it_refuses_other_hosts(host: str | None, search: Search):
    dashboard = Dashboard(search.folder, open_storage(search.folder))
    code, body = ask(dashboard, "/api/studies", host=host)
    assert code == 403
    assert b"search" not in body
    for own in ("127.0.0.1", "localhost", "localhost:9999"):
        assert ask(dashboard, "/api/studies", host=own)[0] == 200


def test_the_storage_itself_cannot_be_written(search: Search):
    storage = open_storage(search.folder)
    with pytest.raises(PermissionError, match="only read here"):
        storage.delete_study(0)
    assert len(optuna_trials(search)) == 3


def test_it_follows_a_running_search_its_restart_and_a_journal_that_is_lost(search: Search):
    dashboard = Dashboard(search.folder, open_storage(search.folder))
    running = Driver(search, trials=9).run(at_most=1)
    assert shown(dashboard) == ["COMPLETE"] * 4
    assert running.next()
    assert shown(dashboard) == ["COMPLETE"] * 4 + ["RUNNING"]
    again = Driver(search, trials=9).run(at_most=2)
    assert shown(dashboard) == ["COMPLETE"] * 6
    (search.folder / STUDY).unlink()
    assert shown(dashboard) == ["COMPLETE"] * 6
    again.run(at_most=1)
    assert shown(dashboard) == ["COMPLETE"] * 7


def test_a_journal_that_is_a_pipe_or_a_link_is_not_opened(search: Search, tmp_path: Path):
    journal = search.folder / STUDY
    journal.rename(tmp_path / "elsewhere")
    os.mkfifo(journal)
    dashboard = Dashboard(search.folder, open_storage(search.folder))
    assert json.loads(ask(dashboard, "/api/studies")[1])["study_summaries"] == []
    journal.unlink()
    journal.symlink_to(tmp_path / "elsewhere")
    assert json.loads(ask(dashboard, "/api/studies")[1])["study_summaries"] == []


@pytest.mark.parametrize("port", [99_999, -1])
def test_a_port_that_there_is_not_is_told(port: int, search: Search):
    dashboard = Dashboard(search.folder, open_storage(search.folder))
    with pytest.raises(ValueError, match=f"--port is {port}: .*; give another"):
        serve(dashboard, port)
