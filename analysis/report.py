"""A report on runs: every table as csv, markdown and LaTeX, every figure as svg and png, one page.

The page is a single file that needs no network: figures are data URIs, styles and script inline.
"""

import base64
import hashlib
import inspect
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib as mpl
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG

from quarterhour.analysis import formats
from quarterhour.analysis.chapters.paper.comparison import Comparison
from quarterhour.analysis.chapters.run import remarks
from quarterhour.analysis.contents import COMMON_SECTIONS, RUN_SECTIONS
from quarterhour.analysis.publication import publishable
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import FigureMaker, Section, TableMaker

PAGE = "report.html"
TABLES, FIGURES = "tables", "figures"
CONTENTS = {PAGE, TABLES, FIGURES}
"""What a report's folder holds."""
PNG_DPI = 150
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+|^\.+")  # in a link, or a path that LaTeX reads
# Equal figures are equal files; text as outlines looks the same wherever it is opened; a name with
# a dollar sign is no formula.
_STYLE: Any = {
    "svg.hashsalt": "quarterhour",
    "svg.fonttype": "path",
    "text.parse_math": False,
    "font.size": 10,
}


class TableView(NamedTuple):
    """A table as the page shows it."""

    title: str
    caption: str
    cells: pd.DataFrame
    numeric: list[str]
    note: str


class FigureView(NamedTuple):
    """A figure as the page shows it; without a `source` there was nothing to draw."""

    title: str
    caption: str
    source: str | None
    inches: float


class SectionView(NamedTuple):
    """A section as the page shows it."""

    id: str
    title: str
    tables: list[TableView]
    figures: list[FigureView]


class Part(NamedTuple):
    """The sections of one run, or of all runs together."""

    title: str
    remarks: list[str]
    sections: list[SectionView]


def write_report(runs: Sequence[Run], folder: Path) -> None:
    """Write the report on `runs`, finished or not, into `folder`.

    Each of several runs has a part of the page, and a folder of its name for its files.
    """
    runs = [publishable(run) for run in runs]
    with mpl.rc_context(_STYLE):
        parts = [
            Part(f"Run {run.folder.name}", remarks(run), _sections(run, RUN_SECTIONS, folder, name))
            for run, name in _subfolders(runs).items()
        ]
        parts.append(Part("Beyond one run", [], _sections(runs, COMMON_SECTIONS, folder, "")))
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
    tables, figures = folder / TABLES / subfolder, folder / FIGURES / subfolder
    for path in (tables, figures):
        path.mkdir(parents=True, exist_ok=True)
    return [
        SectionView(
            id=f"{subfolder}-{section.name}".strip("-"),
            title=section.title,
            tables=[_table(subject, *made, tables / name) for name, made in section.tables.items()],
            figures=[
                _figure(subject, *made, figures / name) for name, made in section.figures.items()
            ],
        )
        for section in sections
        if section.applies(subject)
    ]


def _table(subject: Any, title: str, maker: TableMaker[Any], path: Path) -> TableView:
    """Write a table's three files, and return what the page shows of it."""
    made, note = maker(subject), ""
    if isinstance(made, Comparison):
        cells, note = made.texts(), made.note
        numeric, title = [name for name in cells if name != "configuration"], made.heading
        frame = made.frame()
    else:
        cells, numeric, frame = formats.texts(made), formats.numeric_headers(made), made
    formats.write_csv(frame, path.with_suffix(".csv"))
    path.with_suffix(".md").write_text(formats.markdown(cells, numeric), encoding="utf-8")
    path.with_suffix(".tex").write_text(formats.latex(cells, numeric, title), encoding="utf-8")
    return TableView(title=title, caption=_caption(maker), cells=cells, numeric=numeric, note=note)


def _figure(subject: Any, title: str, maker: FigureMaker[Any], path: Path) -> FigureView:
    """Write a figure's two files, and return what the page shows of it."""
    source, inches = None, 0.0
    if made := maker(subject):
        inches = made.get_figwidth()
        layout: Any = made.get_layout_engine()
        layout.execute(made)  # once for both files: it takes longer than drawing
        made.set_layout_engine("none")
        svg = io.BytesIO()
        FigureCanvasSVG(made).print_svg(svg, metadata={"Date": None})
        made.dpi = PNG_DPI
        FigureCanvasAgg(made).print_png(path.with_suffix(".png"))
        path.with_suffix(".svg").write_bytes(svg.getvalue())
        source = f"data:image/svg+xml;base64,{base64.b64encode(svg.getvalue()).decode()}"
    return FigureView(title, _caption(maker), source, inches)


def _caption(maker: Any) -> str:
    """The first paragraph of a maker's docstring, less the markup of code."""
    first = (inspect.getdoc(maker) or "").split("\n\n")[0]
    return " ".join(first.split()).replace("`", "")


def _page(runs: Sequence[Run], parts: Sequence[Part]) -> str:
    """The page, which may load nothing and run no script but its own."""
    template, style, script = (
        (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
        for name in ("report.html.j2", "report.css", "report.js")
    )
    figures = [figure for part in parts for section in part.sections for figure in section.figures]
    for inches in sorted({figure.inches for figure in figures}):
        widths = f"min-width: {3.5 * inches}rem; max-width: {5.5 * inches}rem"
        style += f'img[data-inches="{inches}"] {{ {widths}; }}\n'
    strict: Any = {"autoescape": True, "undefined": jinja2.StrictUndefined}
    page = jinja2.Template(template, trim_blocks=True, lstrip_blocks=True, **strict)
    inline = {"style": style, "script": script}
    allowed = {f"{name}_hash": _hash(text) for name, text in inline.items()}
    return page.render(runs=runs, parts=parts, **inline, **allowed)


def _hash(text: str) -> str:
    """As a content policy names an inline style or script that it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
