"""A report on runs: every table as csv, markdown and LaTeX, every figure as svg and png, one page.

The page is a single file that needs no network: figures are data URIs, styles and script inline.
"""

import base64
import hashlib
import inspect
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib as mpl
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG

from quarterhour.analysis import formats, plots
from quarterhour.analysis.chapters.run import headline
from quarterhour.analysis.contents import COMMON_SECTIONS, RUN_SECTIONS
from quarterhour.analysis.publication import publishable
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import FigureMaker, Section, Table, TableMaker

PAGE = "report.html"
TABLES, FIGURES = "tables", "figures"
CONTENTS = {PAGE, TABLES, FIGURES}
"""What a report's folder holds."""
PNG_DPI = 150
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+|^\.+")  # in a link, or a path that LaTeX reads


class TableView(NamedTuple):
    """A table as the page shows it: the columns of figures are `numeric`."""

    title: str
    caption: str
    cells: pd.DataFrame
    numeric: list[str]
    notes: list[str]


class FigureView(NamedTuple):
    """A figure as the page shows it."""

    title: str
    caption: str
    source: str
    inches: float

    @property
    def wide(self) -> bool:
        """Whether it has several panels, and scrolls where there is no room for them."""
        return self.inches > plots.SINGLE


class SectionView(NamedTuple):
    """A section as the page shows it; `missing` are the titles of what is not there yet."""

    id: str
    section: Section[Any]
    sentences: list[str]
    figures: list[FigureView]
    tables: list[TableView]
    missing: list[str]


class Part(NamedTuple):
    """The sections of one run, or of all runs together."""

    title: str
    sections: list[SectionView]


def write_report(runs: Sequence[Run], folder: Path) -> None:
    """Write the report on `runs`, finished or not, into `folder`.

    Each of several runs has a part of the page, and a folder of its name for its files.
    """
    runs = [publishable(run) for run in runs]
    runs = [replace(run, beside=tuple(other for other in runs if other is not run)) for run in runs]
    with mpl.rc_context(plots.STYLE):
        parts = [
            Part(f"Run {run.folder.name}", _sections(run, RUN_SECTIONS, folder, name))
            for run, name in _subfolders(runs).items()
        ]
        parts.append(Part("Beyond one run", _sections(runs, COMMON_SECTIONS, folder, "")))
    written = sorted(path.relative_to(folder / TABLES) for path in folder.glob("**/*.tex"))
    document = formats.latex_document([path.as_posix() for path in written])
    (folder / TABLES / "tables.tex").write_text(document, encoding="utf-8")
    shown = [part for part in parts if part.sections]
    (folder / PAGE).write_text(_page(runs, shown), encoding="utf-8")


def _subfolders(runs: Sequence[Run]) -> dict[Run, str]:
    """The folder of each run's files, which also begins its sections' names; "" for a lone run."""
    if len({run.folder.name for run in runs}) < len(runs):
        raise ValueError("two run folders have the same name: give a link to one of them")
    names = [_UNSAFE.sub("-", run.folder.name) for run in runs]
    safe = [f"{name}-{n}" if name in names[:n] else name for n, name in enumerate(names)]
    return {run: name if len(runs) > 1 else "" for run, name in zip(runs, safe, strict=True)}


def _sections(
    subject: Any, sections: Sequence[Section[Any]], folder: Path, subfolder: str
) -> list[SectionView]:
    """Write the files of the sections that apply, and return what the page shows of them."""
    for kind in (TABLES, FIGURES):
        (folder / kind / subfolder).mkdir(parents=True, exist_ok=True)
    return [
        _section(subject, section, folder, subfolder)
        for section in sections
        if section.applies(subject)
    ]


def _section(subject: Any, section: Section[Any], folder: Path, subfolder: str) -> SectionView:
    """Write a section's files, and return what the page shows of it."""
    name = f"{subfolder}-{section.name}".strip("-")
    if lacking := section.lacks(subject):
        return SectionView(name, section, [lacking], [], [], [])
    figures = [
        (title, _figure(subject, title, maker, folder / FIGURES / subfolder / file))
        for file, (title, maker) in section.figures.items()
    ]
    tables = [
        (title, _table(subject, title, maker, folder / TABLES / subfolder / file))
        for file, (title, maker) in section.tables.items()
    ]
    return SectionView(
        name,
        section,
        section.sentences(subject),
        [view for _, view in figures if view],
        [view for _, view in tables if view],
        [title for title, view in [*figures, *tables] if not view],
    )


def _table(subject: Any, title: str, maker: TableMaker[Any], path: Path) -> TableView | None:
    """Write a table's three files, and return what the page shows of it; None if it is empty."""
    made = maker(subject)
    table = made if isinstance(made, Table) else Table(frame=made, cells=formats.texts(made))
    if table.frame.empty:
        return None
    formats.write_csv(table.frame, path.with_suffix(".csv"))
    cells, notes = formats.with_notes(table.cells)
    notes += table.notes
    title, numeric = table.title or title, formats.numeric_headers(cells)
    texts = {".md": formats.markdown(cells, numeric, notes)}
    texts[".tex"] = formats.latex(cells, numeric, title, notes)
    for suffix, text in texts.items():
        path.with_suffix(suffix).write_text(text, encoding="utf-8")
    return TableView(title, _caption(maker), cells, numeric, notes)


def _figure(subject: Any, title: str, maker: FigureMaker[Any], path: Path) -> FigureView | None:
    """Write a figure's two files, and return what the page shows of it; None if there is none."""
    made = maker(subject)
    if not made:
        return None
    layout: Any = made.get_layout_engine()
    layout.execute(made)  # once for both files: it takes longer than drawing
    made.set_layout_engine("none")
    svg = io.BytesIO()
    FigureCanvasSVG(made).print_svg(svg, metadata={"Date": None})
    made.dpi = PNG_DPI
    quickly = {"compress_level": 3}  # half the time, and a tenth more bytes
    FigureCanvasAgg(made).print_png(path.with_suffix(".png"), pil_kwargs=quickly)
    path.with_suffix(".svg").write_bytes(svg.getvalue())
    shown = svg.getvalue().replace(b"</style>", f"{_template('figure.css')}</style>".encode(), 1)
    source = f"data:image/svg+xml;base64,{base64.b64encode(shown).decode()}"
    return FigureView(title, _caption(maker), source, made.get_figwidth())


def _caption(maker: Any) -> str:
    """The first paragraph of a maker's docstring, less the markup of code."""
    first = (inspect.getdoc(maker) or "").split("\n\n")[0]
    return " ".join(first.split()).replace("`", "")


def _page(runs: Sequence[Run], parts: Sequence[Part]) -> str:
    """The page, which may load nothing and run no script but its own."""
    template, style, script = map(_template, ("report.html.j2", "report.css", "report.js"))
    figures = [figure for part in parts for section in part.sections for figure in section.figures]
    for inches, wide in sorted({(figure.inches, figure.wide) for figure in figures}):
        widths = f"min-width: {3.5 * inches * wide}rem; max-width: {5.5 * inches}rem"
        style += f'img[data-inches="{inches}"] {{ {widths}; }}\n'
    strict: Any = {"autoescape": True, "undefined": jinja2.StrictUndefined}
    page = jinja2.Template(template, trim_blocks=True, lstrip_blocks=True, **strict)
    inline = {"style": style, "script": script}
    allowed = {f"{name}_hash": _hash(text) for name, text in inline.items()}
    headlines = [headline(run) for run in runs]
    return page.render(runs=runs, headlines=headlines, parts=parts, **inline, **allowed)


@cache
def _template(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content policy names an inline style or script that it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
