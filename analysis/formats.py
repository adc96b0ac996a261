"""A table's cells as text for people, and that text in markdown and LaTeX."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from quarterhour.tune.foreign import plain
from quarterhour.tune.run_folder import COLUMNS

MISSING = "–"
SIGNIFICANT_DIGITS = 4
SPAN = 1e4  # of figures that can share their decimals
LARGE = 1e9  # is written as a power of ten
# pdflatex lacks the characters outside Latin-1; these are the ones that our texts have.
_LATEX_CHARACTERS = str.maketrans(
    {"–": "--", "—": "---", "…": "...", "−": "-", "≤": "<=", "≥": ">=", "→": "->", "’": "'"}
)


def texts(frame: pd.DataFrame) -> pd.DataFrame:
    """Every cell as text, "–" for a missing figure; a named index becomes the first columns.

    The figures of a column have equal decimals: four significant digits of the largest. Where they
    span more than four orders of magnitude, each has four significant digits of its own.
    """
    named = _with_index(frame)
    return pd.DataFrame({header(name): _column_texts(named[name]) for name in named}, dtype=str)


def numeric_headers(frame: pd.DataFrame) -> list[str]:
    """The headers of columns of figures, which are aligned to the right."""
    return [header(name) for name in _with_index(frame).select_dtypes("number")]


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table, its figures to ten digits; no text of it is a formula to a spreadsheet."""
    safe = _with_index(frame).map(_no_formula).rename(columns=_no_formula)
    safe.to_csv(path, float_format="%.10g", index=False)


def header(column: Any) -> str:
    """A column's name for people: a row's has its label and unit, a setting's is as --set has it."""
    name = str(column)
    if name in COLUMNS:
        return COLUMNS[name].header
    return name if "." in name else name.replace("_", " ")


def markdown(cells: pd.DataFrame, numeric: list[str]) -> str:
    """A table of texts in markdown."""
    escaped = cells.map(lambda text: " ".join(text.replace("|", r"\|").split()))
    aligned = ["right" if name in numeric else "left" for name in cells]
    return escaped.to_markdown(index=False, disable_numparse=True, colalign=aligned) + "\n"


def latex(cells: pd.DataFrame, numeric: list[str], title: str) -> str:
    """A table of texts in LaTeX, no wider than the line, by booktabs and graphicx."""
    aligned = "".join("r" if name in numeric else "l" for name in cells)
    plain = cells.map(_latex_text).rename(columns=_latex_text)
    tabular = plain.to_latex(index=False, escape=True, column_format=aligned)
    return (
        "% needs \\usepackage{booktabs} and \\usepackage{graphicx}\n"
        f"\\begin{{table}}[htbp]\n\\centering\n\\caption{{{_latex_text(title)}}}\n"
        "\\resizebox{\\ifdim\\width>\\linewidth \\linewidth\\else\\width\\fi}{!}{%\n"
        f"{tabular}}}\n\\end{{table}}\n"
    )


def latex_document(files: list[str]) -> str:
    """A document that shows these LaTeX tables and compiles as it is."""
    inputs = "".join(f"\\input{{{file}}}\n\\clearpage\n" for file in files)
    return (
        "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{textcomp}\n"
        "\\usepackage[landscape,margin=2cm]{geometry}\n"
        "\\usepackage{booktabs}\n\\usepackage{graphicx}\n"
        f"\\begin{{document}}\n{inputs}\\end{{document}}\n"
    )


def _with_index(frame: pd.DataFrame) -> Any:
    """The table with a named index as its first columns."""
    return frame.reset_index() if any(frame.index.names) else frame


def _no_formula(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def _column_texts(column: pd.Series) -> list[str]:
    are_figures = pd.api.types.is_numeric_dtype(column) and column.dtype != bool
    decimals = _decimals(column.dropna().abs()) if are_figures else None
    if decimals is None:
        return [_cell_text(value) for value in column]
    return [MISSING if pd.isna(figure) else f"{figure:,.{decimals}f}" for figure in column]


def _decimals(sizes: pd.Series) -> int | None:
    """The decimals of a column whose figures have these sizes; None if each needs its own."""
    if sizes.empty:
        return 0
    largest, smallest = sizes.max(), sizes[sizes > 0].min()
    if largest >= LARGE or largest > SPAN * smallest:
        return None
    if (sizes % 1 == 0).all():
        return 0
    return max(0, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(largest)))


def _cell_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float | int):
        return "" if pd.isna(value) else plain(str(value))
    if pd.isna(value):
        return MISSING
    if value % 1 == 0 or abs(value) >= 10 ** (SIGNIFICANT_DIGITS - 1):
        return f"{value:,.0f}" if abs(value) < LARGE else f"{value:.{SIGNIFICANT_DIGITS}g}"
    return f"{value:.{SIGNIFICANT_DIGITS}g}"


def _latex_text(text: str) -> str:
    """The text in characters that pdflatex has; a line break becomes a space."""
    known = text.translate(_LATEX_CHARACTERS)
    known = " ".join("".join(c if c.isprintable() else " " for c in known).split())
    return known.encode("latin-1", "replace").decode("latin-1")
