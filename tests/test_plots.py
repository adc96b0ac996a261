import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg

from quarterhour.analysis import plots
from quarterhour.analysis.chapters.paper.published import SIX
from quarterhour.analysis.plots import COLOURS, colours
from quarterhour.analysis.report import PNG_DPI


def test_the_six_have_their_colour_and_others_one_of_the_rest():
    own = colours(["mine", "high_lr", "yours", "baseline", "mine"])
    assert own["high_lr"] == COLOURS["high_lr"]
    assert own["mine"] != own["yours"]
    assert not {own["mine"], own["yours"]} & set(COLOURS.values())
    assert list(COLOURS) == list(SIX)
    assert len(set(COLOURS.values())) == len(COLOURS) == 6


def test_no_label_leaves_the_picture_at_its_resolution():
    names = [f"{n:04d} sampler (n = 3)" for n in range(3)]
    with rc_context(plots.STYLE):
        figure, axes = plots.figure_and_axes((plots.SINGLE, 3))
        middle = np.arange(3.0)
        plots.draw_intervals(axes, names, middle, middle - 1, middle + 1)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        figure.dpi = PNG_DPI
        FigureCanvasAgg(figure).draw()
        lefts = [label.get_window_extent().x0 for label in axes.get_yticklabels()]
    assert min(lefts) >= 0
