"""What a report holds: the chapters' sections in the order of the page.

To add a table or a figure, write its function and name it in its chapter's section. To add a
chapter, write a module that ends with its section, and name that here.
"""

from collections.abc import Sequence

from quarterhour.analysis.chapters import (
    calibration,
    contradictions,
    equal_cost,
    memorisation,
    opening,
    run,
    samples,
    scaling,
    seeds,
    side_by_side,
    verify,
)
from quarterhour.analysis.chapters.ablation.section import ABLATION
from quarterhour.analysis.chapters.paper.section import PAPER
from quarterhour.analysis.chapters.promotion.section import PROMOTION
from quarterhour.analysis.chapters.search.section import FRONT, SEARCH
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section

RUN_SECTIONS: tuple[Section[Run], ...] = (
    opening.OPENING,
    opening.SEARCH_OPENING,
    ABLATION,
    PROMOTION,
    equal_cost.SECTION,
    seeds.SECTION,
    memorisation.SECTION,
    PAPER,
    verify.SECTION,
    calibration.SECTION,
    SEARCH,
    FRONT,
    samples.SECTION,
    run.SECTION,
)
"""Sections of each run."""

COMMON_SECTIONS: tuple[Section[Sequence[Run]], ...] = (
    side_by_side.SECTION,
    scaling.SECTION,
    contradictions.SECTION,
)
"""Sections of all runs together."""
