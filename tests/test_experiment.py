import subprocess
from pathlib import Path

import pytest

from quarterhour.tune.experiment import git_commit


def git(folder: Path, *arguments: str) -> str:
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *author, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_of_a_repository_which_holds_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / ".venv/site-packages/quarterhour/tune/experiment.py"
    source.parent.mkdir(parents=True)
    source.touch()
    (tmp_path / ".gitignore").write_text(".venv")
    monkeypatch.setattr("quarterhour.tune.experiment.__file__", str(source))
    assert git_commit() is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "another project's")
    assert git_commit() is None, "installed in its environment"
    git(tmp_path, "add", "--force", str(source))
    git(tmp_path, "commit", "-qm", "ours")
    assert git_commit() == git(tmp_path, "rev-parse", "HEAD")
    other = tmp_path / ".venv/other"
    other.mkdir()
    (other / "experiment.py").touch()
    git(other, "init", "-q")
    git(other, "add", ".")
    git(other, "commit", "-qm", "of the user's environment")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))
    ours = git_commit()
    monkeypatch.undo()
    monkeypatch.setattr("quarterhour.tune.experiment.__file__", str(source))
    assert ours == git(tmp_path, "rev-parse", "HEAD")
    source.write_text("changed")
    assert git_commit() == git(tmp_path, "rev-parse", "HEAD") + "+changes"
