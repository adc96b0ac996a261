"""Profiles: the reference to the letter, and the same shape at a size for two CPU cores."""

from dataclasses import dataclass

from quarterhour.data.batches import BatchConfig
from quarterhour.data.tokens import DataConfig
from quarterhour.model.decoder import DecoderConfig
from quarterhour.model.optim import OptimConfig
from quarterhour.search_spaces.point import BudgetConfig, TrialConfig


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A data set and the baseline on it; the other five configurations keep its ratios."""

    name: str
    data: DataConfig
    baseline: TrialConfig


PAPER = Profile(
    name="paper",
    data=DataConfig(
        corpus="HuggingFaceTB/smollm-corpus:cosmopedia-v2", tokenizer="HuggingFaceTB/SmolLM-135M"
    ),
    baseline=TrialConfig(
        model=DecoderConfig(vocab_size=49_152, d_model=384, n_heads=6, n_layers=12, d_ff=1536),
        optim=OptimConfig(learning_rate=3e-4),
        data=BatchConfig(batch_size=8, seq_len=512),
        budget=BudgetConfig(steps=2_000, report_every=20, eval_every=400),
        precision="fp16",
    ),
)

QUICK = Profile(
    name="quick",
    data=DataConfig(corpus="builtin", tokenizer="builtin"),
    baseline=TrialConfig(
        model=DecoderConfig(vocab_size=8_192, d_model=96, n_heads=6, n_layers=3, d_ff=384),
        optim=OptimConfig(learning_rate=1.2e-3),
        data=BatchConfig(batch_size=8, seq_len=128),
        budget=BudgetConfig(steps=300, report_every=3, eval_every=60, eval_batches=10),
        precision="fp32",
    ),
)

PROFILES = {profile.name: profile for profile in (PAPER, QUICK)}


def profile_named(name: str) -> Profile:
    """The profile of that name; raises ValueError for one that does not exist."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile '{name}': use {' or '.join(PROFILES)}")
    return PROFILES[name]
