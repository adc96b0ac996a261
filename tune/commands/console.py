"""Where the commands print: what others wrote is text, never markup or a control sequence."""

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from quarterhour.tune.foreign import plain


class PlainConsole(Console):
    """A console that shows every text as it is written; `width` in characters.

    A sentence is not broken: a terminal wraps it itself, and what is copied or searched is whole.
    """

    def __init__(self, width: int | None = None) -> None:
        # In a notebook a bar would be drawn again and again, each time as an object of its own.
        plain_lines = False if "ipykernel" in sys.modules else None
        super().__init__(
            width=width, markup=False, emoji=False, force_jupyter=False, force_terminal=plain_lines
        )

    def print(self, *objects: Any, **options: Any) -> None:
        """Print text or tables."""
        options.setdefault("soft_wrap", all(isinstance(one, str) for one in objects))
        super().print(*objects, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The renderable's segments, without characters that steer a terminal."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=plain(segment.text))
