"""A table's cells as text for people, and that text in markdown and LaTeX."""

import math
import re
from collections import Counter
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
_LATEX_ESCAPES = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": "\\textbackslash {}", "~": "\\textasciitilde {}", "^": "\\textasciicircum {}"}
)
_FIGURE = re.compile(r"<?(?!0\d)[-+±]?[\d,.]+(e[-+]?\d+)?\*? ?|–|-|missing|")
_REASONS = ("reason", "remark", "found", "not comparable")
OFTEN = 3  # cells with the same reason


def texts(frame: pd.DataFrame) -> pd.DataFrame:
    """Every cell as text, "–" for a missing figure; a named index becomes the first columns.

    The figures of a column have equal decimals: four significant digits of the largest. Where they
    span more than four orders of magnitude, each has four significant digits of its own.
    """
    named = _with_index(frame)
    return pd.DataFrame({header(name): _column_texts(named[name]) for name in named}, dtype=str)


def numeric_headers(cells: pd.DataFrame) -> list[str]:
    """The headers of columns of figures, which are aligned to the right."""
    return [name for name in cells if all(map(_FIGURE.fullmatch, cells[name])) and len(cells)]


def with_notes(cells: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The cells, and notes of the reasons in them: what all rows share, and by number what several
    have. A column without any figure, or any reason of its own, is left out.
    """
    cells = cells.loc[:, [name for name in cells if {*cells[name]} != {MISSING}]]
    notes: list[str] = []
    for column in (name for name in _REASONS if name in cells and len(cells) > 1):
        parts = [list(filter(None, text.split("; "))) for text in cells[column]]
        counts = Counter(part for own in parts for part in dict.fromkeys(own))
        short = {part: "" for part, n in counts.items() if n == len(cells)}
        notes += [f"All rows: {'; '.join(short)}."] * bool(short)
        often = [part for part, n in counts.items() if OFTEN <= n < len(cells)]
        short |= {part: f"[{number}]" for number, part in enumerate(often, start=1)}
        notes += [f"{short[part]} {part}" for part in often]
        texts = ["; ".join(filter(None, (short.get(p, p) for p in own))) for own in parts]
        cells = cells.assign(**{column: texts}) if any(texts) else cells.drop(columns=column)
    return cells, notes


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table, its figures to ten digits; no text of it is a formula to a spreadsheet."""
    safe = _with_index(frame).map(_no_formula).rename(columns=_no_formula)
    safe.to_csv(path, float_format="%.10g", index=False)


def header(column: Any) -> str:
    """A column's name for people: label and unit of a row's, and words of what is a plain name."""
    name = str(column)
    if name in COLUMNS:
        return COLUMNS[name].header
    return name.replace("_", " ") if name.isidentifier() else name


def chance(p: float) -> str:
    """A probability as text, no finer than anybody reads it."""
    if pd.isna(p):
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def markdown(cells: pd.DataFrame, numeric: list[str], notes: list[str]) -> str:
    """A table of texts in markdown, its notes below."""
    escaped = cells.map(lambda text: " ".join(text.replace("|", r"\|").split()))
    aligned = ["right" if name in numeric else "left" for name in cells]
    table = escaped.to_markdown(index=False, disable_numparse=True, colalign=aligned)
    return "\n\n".join([table, *notes]) + "\n"


def latex(cells: pd.DataFrame, numeric: list[str], title: str, notes: list[str]) -> str:
    """A table of texts in LaTeX, no wider than the line, by booktabs and graphicx."""
    aligned = "".join("r" if name in numeric else "l" for name in cells)
    head, *rows = [
        " & ".join(map(_latex_text, row)) + " \\\\\n" for row in [[*cells], *cells.to_numpy()]
    ]
    below = "".join(f"\\par\\footnotesize {_latex_text(note)}\n" for note in notes)
    return (
        "% needs \\usepackage{booktabs} and \\usepackage{graphicx}\n"
        f"\\begin{{table}}[htbp]\n\\centering\n\\caption{{{_latex_text(title)}}}\n"
        "\\resizebox{\\ifdim\\width>\\linewidth \\linewidth\\else\\width\\fi}{!}{%\n"
        f"\\begin{{tabular}}{{{aligned}}}\n\\toprule\n{head}\\midrule\n{''.join(rows)}"
        f"\\bottomrule\n\\end{{tabular}}\n}}\n{below}\\end{{table}}\n"
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
    return known.encode("latin-1", "replace").decode("latin-1").translate(_LATEX_ESCAPES)
