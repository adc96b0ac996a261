"""A Ray of one's own: closed to other users, in a neutral folder, gone at the end."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import ray
from test_grid import TWO_AT_ONCE, quarterhour
from tiny import write_corpus

from quarterhour.tune.cluster.connection import connected, own_folder

NOBODY = 65534
# Imports come before the change of user, who may not be allowed to read Python's files.
JOIN = """
import os, sys
import ray
from ray._raylet import GcsClient
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
print(len(GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10)), "machine")
"""


def join_as_another_user(address: str, **settings: str) -> str:
    environment = {"HOME": "/nonexistent", "PATH": os.environ["PATH"], **settings}
    command = [sys.executable, "-c", JOIN, address, str(NOBODY)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_cannot_join_a_ray_that_is_ours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # which is for clusters that the user joins
    with connected(TWO_AT_ONCE) as storage:
        address = ray.get_runtime_context().gcs_address
        token = os.environ["RAY_AUTH_TOKEN"]
        assert "InvalidAuthToken" in join_as_another_user(address, RAY_AUTH_MODE="disabled")
        guess = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * len(token)}
        assert "InvalidAuthToken" in join_as_another_user(address, **guess)
        known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        assert "1 machine" in join_as_another_user(address, **known), "or it was no attempt"
        listed = subprocess.run(["ps", "-Awwo", "args"], capture_output=True, text=True)
        assert "raylet" in listed.stdout
        assert token not in listed.stdout
        assert Path(storage).parent.stat().st_mode & 0o777 == 0o700
    assert (os.environ["RAY_AUTH_MODE"], "RAY_AUTH_TOKEN" in os.environ) == ("disabled", False)
    assert not (Path.home() / ".ray").exists()


@pytest.mark.slow
def test_modules_of_the_working_directory_are_not_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("random", "requests", "tune", "model", "mine"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not yours')\n")
    temporary = tmp_path / ("long" * 30)
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))  # too long for a socket's path
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"lib:{os.environ.get('PYTHONPATH', '')}:")

    def look() -> tuple[list[str], str]:
        import random
        import sys

        return sys.path, str(random.__file__)

    with connected(TWO_AT_ONCE):
        assert Path.cwd() == tmp_path
        path, file = ray.get(ray.remote(look).remote())
    assert not {"", str(tmp_path)} & set(path)
    assert str(tmp_path / "lib") in path, "as in this process"
    assert not Path(file).is_relative_to(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("trains", [False, True])
def test_a_sigterm_to_the_whole_process_group_ends_with_one_line(trains: bool, tmp_path: Path):
    write_corpus(tmp_path / "tiny.jsonl")
    command = [Path(sys.executable).with_name("quarterhour"), "grid", "--corpus", "tiny.jsonl"]
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:
        grid = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {"TMPDIR": temporary},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        begun = (tmp_path, "runs/grid/*/*/metrics.jsonl") if trains else (Path(temporary), "qh*")
        while not list(begun[0].glob(begun[1])):
            assert grid.poll() is None, grid.communicate()
            time.sleep(0.05)
        os.killpg(grid.pid, signal.SIGTERM)
        output, errors = grid.communicate(timeout=30)
        assert grid.returncode == 130
        assert not list(Path(temporary).glob("qh*"))
    said = output if trains else errors
    assert "the same command goes on from there" in " ".join(said.split())
    assert errors.count("\n") == (not trains)


@pytest.mark.slow
def test_memory_that_others_fill_ends_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.02")
    write_corpus(tmp_path / "tiny.jsonl")
    grid = quarterhour(tmp_path, "grid", "--corpus", "tiny.jsonl", "--max-steps", "3")
    output, errors = grid.communicate()
    assert (grid.returncode, errors) == (0, "")
    assert "6 of 6 trials complete" in output


def test_a_folder_is_the_users_alone_and_gone_at_the_end(tmp_path: Path):
    with own_folder(str(tmp_path), "qh") as folder:
        assert Path(folder).parent == tmp_path
        assert Path(folder).stat().st_mode & 0o777 == 0o700
        with own_folder(str(tmp_path), "qh") as another:
            assert Path(folder).exists()
            assert another != folder
        assert [path.name for path in tmp_path.iterdir()] == [Path(folder).name]
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path):
    script = (
        "import os, signal, sys\n"
        "from quarterhour.tune.cluster.connection import own_folder\n"
        "with own_folder(sys.argv[1], 'qh') as folder:\n"
        "    os.mkdir(folder + '/ray')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    (left,) = tmp_path.glob("qh*")
    (tmp_path / "qh_of_the_user").mkdir()
    kept = shutil.copytree(left, tmp_path / "elsewhere")
    (tmp_path / "qh_link").symlink_to(kept)
    with own_folder(str(tmp_path), "qh"):
        assert not left.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"qh_of_the_user", "elsewhere", "qh_link"}
