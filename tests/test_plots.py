from quarterhour.analysis.chapters.paper.published import SIX
from quarterhour.analysis.plots import COLOURS, colours


def test_the_six_have_their_colour_and_others_one_of_the_rest():
    own = colours(["mine", "high_lr", "yours", "baseline", "mine"])
    assert own["high_lr"] == COLOURS["high_lr"]
    assert own["mine"] != own["yours"]
    assert not {own["mine"], own["yours"]} & set(COLOURS.values())
    assert list(COLOURS) == list(SIX)
    assert len(set(COLOURS.values())) == len(COLOURS) == 6
