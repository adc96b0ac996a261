"""What a figure or a terminal shows, to be asked by tests."""

from typing import Any

from matplotlib.figure import Figure
from rich.console import Console


def drawn(figure: Figure | None) -> Figure:
    assert figure
    return figure


def note_of(figure: Figure) -> str:
    """The remark below the axes, on one line."""
    return " ".join(figure.get_supxlabel().split())


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def text_of(*shown: Any, width: int = 100) -> str:
    """As a terminal of so many columns shows it."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(*shown)
    return capture.get()
