"""What users install: by wheel, by source distribution, editable; without downloading anything."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
OLD_RUNS = ROOT / "tests/data/run_of_version_0.1"  # for their corpus and tokenizer
PACKAGES = ("analysis", "data", "model", "search_spaces", "tune")
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, f"build_{sys.argv[1]}")(sys.argv[2]))
"""
LOOK = """
import importlib.util
import sys
import quarterhour
print(quarterhour.__file__)
print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])
"""


def call(*command: object, folder: Path) -> str:
    """A command's output; it finds no other quarterhour than its environment's."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(kind: str, source: Path) -> Path:
    """A source tree's wheel, sdist or editable wheel."""
    folder = source.parent / kind
    folder.mkdir()
    output = call(sys.executable, "-c", BUILD, kind, folder, folder=source)
    return folder / output.splitlines()[-1]


def environment(wheel: Path) -> Path:
    """The commands of a fresh environment: a wheel, and the dependencies that this one has."""
    folder = wheel.parent / "environment"
    venv.create(folder)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    call(*pip, "install", "--no-deps", "--no-index", wheel, folder=wheel.parent)
    site = call(python, "-c", "import site; print(site.getsitepackages()[0])", folder=folder)
    # Python reads no .pth file in a folder that a .pth file names: no editable quarterhour.
    Path(site.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree, to build in."""
    copy = tmp_path_factory.mktemp("parent") / "quarterhour"
    others = shutil.ignore_patterns(".*", "runs", "build", "tests", "*.egg-info", "__pycache__")
    return Path(shutil.copytree(ROOT, copy, symlinks=True, ignore=others))


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    return build("wheel", source)


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    return environment(wheel)


@pytest.fixture(scope="module")
def editable(source: Path) -> Path:
    return environment(build("editable", source))


def files(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_a_wheel_holds_every_file_under_one_name(wheel: Path):
    tracked = call("git", "ls-files", *PACKAGES, folder=ROOT).split()
    kinds = (".py", ".json", ".j2", ".css", ".js")
    expected = {f"quarterhour/{path}" for path in tracked if path.endswith(kinds)}
    expected |= {"quarterhour/__init__.py", "quarterhour/__main__.py"}
    assert {path for path in files(wheel) if ".dist-info/" not in path} == expected
    (top_level,) = (path for path in files(wheel) if path.endswith("top_level.txt"))
    assert zipfile.ZipFile(wheel).read(top_level) == b"quarterhour\n"


def test_a_source_distribution_gives_the_same_wheel(source: Path, wheel: Path):
    sdist = build("sdist", source)
    shutil.unpack_archive(sdist, sdist.parent)
    unpacked = sdist.parent / sdist.name.removesuffix(".tar.gz")
    assert files(build("wheel", unpacked)) == files(wheel)


def test_a_wheel_runs_in_a_folder_with_modules_of_our_names(installed: Path, tmp_path: Path):
    (tmp_path / "data").mkdir()
    for name in ("model.py", "tune.py", "data/__init__.py"):
        (tmp_path / name).write_text("raise RuntimeError('not yours')\n")
    given = ("--corpus", OLD_RUNS / "corpus.jsonl", "--tokenizer", OLD_RUNS / "tokenizer.json")
    command = ("run", "small_model", "--max-steps", 2, "--name", "mine", *given)
    output = call(installed / "quarterhour", *command, folder=tmp_path)
    assert "1 of 1 trials complete" in output
    call(installed / "python", "-m", "quarterhour", "report", "runs/mine", folder=tmp_path)
    assert (tmp_path / "runs/mine/report/report.html").is_file()


@pytest.mark.parametrize("kind", ["installed", "editable"])
def test_names_of_users_stay_free(
    kind: str, source: Path, request: pytest.FixtureRequest, tmp_path: Path
):
    python = request.getfixturevalue(kind) / "python"
    file, taken = call(python, "-c", LOOK, *PACKAGES, folder=tmp_path).splitlines()
    assert Path(file).is_relative_to(source if kind == "editable" else python.parents[1])
    assert taken == "[]"
    (tmp_path / "data").mkdir()
    (tmp_path / "data/own.py").touch()
    call(python, "-c", "import data.own, quarterhour.data.tokens", folder=tmp_path)


def test_an_editable_installation_works_beside_its_source(editable: Path, source: Path):
    for folder in (source, source.parent):
        output = call(editable / "python", "-m", "quarterhour", "--help", folder=folder)
        assert "search" in output
