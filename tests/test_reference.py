import pytest

from search_spaces.profiles import PAPER, PROFILES, QUICK
from search_spaces.reference import PROTOCOLS, SIX, reference_configurations

TABLE = {
    "baseline": (384, 6, 12, 1536, 8, 3e-4, 512, 40_117_632),
    "high_lr": (384, 6, 12, 1536, 8, 1e-3, 512, 40_117_632),
    "low_lr": (384, 6, 12, 1536, 8, 1e-4, 512, 40_117_632),
    "large_batch": (384, 6, 12, 1536, 16, 5e-4, 512, 40_117_632),
    "short_seq": (384, 6, 12, 1536, 12, 3e-4, 256, 40_117_632),
    "small_model": (256, 4, 8, 1024, 12, 3e-4, 512, 18_878_720),
}


def test_the_paper_profile_is_the_studys_table():
    for name, config in reference_configurations(PAPER, "as-run").items():
        model, data = config.model, config.data
        row = (model.d_model, model.n_heads, model.n_layers, model.d_ff, data.batch_size)
        row += (config.optim.learning_rate, data.seq_len, model.parameters)
        assert row == TABLE[name]
        assert config.budget.steps == 2_000
        assert model.vocab_size == 49_152


def test_the_quick_profile_keeps_the_studys_ratios():
    study = reference_configurations(PAPER, "as-run")
    quick = reference_configurations(QUICK, "as-run")
    assert list(quick) == list(study) == list(SIX)
    for path in ("model.d_model", "model.n_layers", "model.d_ff", "data.seq_len", "data.batch_size",
                 "optim.learning_rate"):  # fmt: skip
        section, field = path.split(".")
        for name in SIX:
            ratios = [
                getattr(getattr(six[name], section), field)
                / getattr(getattr(six["baseline"], section), field)
                for six in (study, quick)
            ]
            assert ratios[0] == pytest.approx(ratios[1])


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_profile_builds_under_every_protocol(profile: str, protocol: str):
    for config in reference_configurations(PROFILES[profile], protocol).values():
        described = protocol == "as-described"
        assert config.model.positions == ("rope" if described else "none")
        assert config.optim.beta2 == (0.95 if described else 0.999)
        assert (config.optim.warmup_fraction > 0) == described
        assert config.model.parameters > 0


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="unknown protocol 'x': use as-run or as-described"):
        reference_configurations(QUICK, "x")
