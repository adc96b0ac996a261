from dataclasses import replace

import pytest
import torch

from quarterhour.data.batches import Batches
from quarterhour.data.tokens import TokenData
from quarterhour.model.decoder import Decoder
from quarterhour.model.optim import build_optimizer
from quarterhour.search_spaces.profiles import PAPER, PROFILES, QUICK
from quarterhour.search_spaces.reference import PROTOCOLS, SIX, reference_configurations

TABLE = {
    "baseline": (384, 6, 12, 1536, 8, 3e-4, 512, 40_117_632),
    "high_lr": (384, 6, 12, 1536, 8, 1e-3, 512, 40_117_632),
    "low_lr": (384, 6, 12, 1536, 8, 1e-4, 512, 40_117_632),
    "large_batch": (384, 6, 12, 1536, 16, 5e-4, 512, 40_117_632),
    "short_seq": (384, 6, 12, 1536, 12, 3e-4, 256, 40_117_632),
    "small_model": (256, 4, 8, 1024, 12, 3e-4, 512, 18_878_720),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_paper_profile_is_the_studys_table(protocol: str):
    six = reference_configurations(PAPER, protocol)
    assert list(six) == list(TABLE)
    for name, config in six.items():
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
    for path in ("model.d_model", "model.n_heads", "model.n_layers", "model.d_ff", "data.seq_len",
                 "data.batch_size", "optim.learning_rate"):  # fmt: skip
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


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_six_differ_in_nothing_but_the_tables_columns(profile: str, protocol: str):
    six = reference_configurations(PROFILES[profile], protocol)
    baseline = six["baseline"]
    for config in six.values():
        optim = replace(config.optim, learning_rate=baseline.optim.learning_rate)
        assert replace(config, model=baseline.model, optim=optim, data=baseline.data) == baseline
        assert config.model.vocab_size == baseline.model.vocab_size
    assert len({config.key("data") for config in six.values()}) == 6


def test_the_paper_profile_has_the_studys_other_settings():
    baseline, data = PAPER.baseline, PAPER.data
    assert data.corpus == "HuggingFaceTB/smollm-corpus:cosmopedia-v2"
    assert data.tokenizer == "HuggingFaceTB/SmolLM-135M"
    assert (data.train_documents, baseline.precision) == (500, "fp16")
    assert (baseline.budget.eval_every, baseline.budget.eval_batches) == (400, 20)
    optim = baseline.optim
    assert (optim.beta1, optim.weight_decay, optim.eps) == (0.9, 0.1, 1e-8)
    assert (optim.clip_norm, optim.final_lr_fraction) == (1.0, 0.1)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_configuration_has_batches_and_a_model(
    profile: str, protocol: str, tokens: TokenData
):
    six = reference_configurations(PROFILES[profile], protocol).values()
    for config in six:
        batch = Batches(tokens, config.data, config.seed).batch_at(0)
        assert batch.shape == (config.data.batch_size, config.data.seq_len + 1)
    for sizes in {config.model for config in six}:
        model = Decoder(sizes, seed=0)
        (group,) = build_optimizer(model, next(iter(six)).optim).param_groups
        assert sum(p.numel() for p in group["params"]) == sizes.parameters
        logits = model.logits(model(torch.tensor([[1, 2, 3]])))
        assert logits.shape == (1, 3, sizes.vocab_size)
        assert bool(logits.isfinite().all())
