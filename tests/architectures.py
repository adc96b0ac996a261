"""Decoders of every kind, drawn by hypothesis, and whether one can be built."""

from typing import Any, get_args

import torch
from hypothesis import strategies as st

from quarterhour.model.decoder import Decoder, DecoderConfig
from quarterhour.model.feed_forward import FeedForwardName
from quarterhour.model.norms import NormName


def loud(config: DecoderConfig) -> Decoder:
    """A decoder with weights so large that each part shows in what comes out."""
    model = Decoder(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.5, generator=generator)
    return model


@st.composite
def configs(draw: st.DrawFn) -> DecoderConfig:
    """Tiny decoders with any combination of the choices."""
    n_heads = draw(st.integers(1, 4))
    choices: dict[str, Any] = {
        "positions": ["none", "rope", "rope-full"],
        "rope_base": [1024.0, 1e4],
        "attention": ["full", "window"],
        "window": [1, 2, 5],
        "full_every": [1, 2, 3],
        "soft_cap": [0.0, 2.0],
        "head": ["tied", "untied"],
        "residual_init": ["equal", "by-depth"],
        "heads_per_kv": [n for n in (1, 2, 3, 4) if n_heads % n == 0],
        "norm": get_args(NormName),
        "norm_place": ["pre", "pre-and-post"],
        "qk_norm": ["none", "rms"],
        "feed_forward": get_args(FeedForwardName),
        "n_experts": [2, 3, 5],
        "active_experts": [1, 2],
    }
    return DecoderConfig(
        vocab_size=draw(st.integers(1, 60)),
        d_model=n_heads * 4 * draw(st.integers(1, 3)),
        n_heads=n_heads,
        n_layers=draw(st.integers(1, 3)),
        d_ff=draw(st.integers(1, 40)),
        **{name: draw(st.sampled_from(values)) for name, values in choices.items()},
    )


# One configuration with all the choices that can be made together, besides their sizes.
EVERYTHING: dict[str, Any] = {
    "model__feed_forward": "swiglu",
    "model__heads_per_kv": 2,
    "model__norm": "layer",
    "model__norm_place": "pre-and-post",
    "model__qk_norm": "rms",
    "model__attention": "window",
    "model__window": 5,
    "model__full_every": 2,
    "model__soft_cap": 5.0,
    "model__head": "untied",
    "model__residual_init": "by-depth",
    "optim__z_loss": 1e-3,
    "optim__optimizer": "muon",
    "optim__ema_decay": 0.9,
}
