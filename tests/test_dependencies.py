"""What pyproject.toml says of other packages."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def imported(path: Path) -> set[str]:
    """The modules that a file imports, by their first names."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return {name.split(".")[0] for name in names}


def plain(name: str) -> str:
    """A package's name as pip compares it."""
    return re.split(r"[\[<>=]", name)[0].lower().replace("_", "-")


def test_every_package_that_is_imported_is_declared_with_a_lowest_version():
    packages = ("analysis", "data", "model", "search_spaces", "tune")
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    modules = set[str]().union(*map(imported, files)) - sys.stdlib_module_names - {"quarterhour"}
    owners = packages_distributions()
    assert {"torch", "huggingface_hub", "pyarrow"} <= modules
    needed = {plain(owner) for module in modules for owner in owners[module]}
    assert needed <= set(map(plain, DECLARED))
    assert not [package for package in DECLARED if ">=" not in package]
