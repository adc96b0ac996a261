"""Text samples from a decoder, to look at what a trial has learnt."""

import torch
from torch import Tensor

from model.decoder import Decoder

# Openings of the kind of text the study's corpus holds: lessons, stories, explanations.
PROMPTS = (
    "The history of",
    "In this lesson, we will learn",
    "Once upon a time, there was",
    "A function that returns",
    "The most important thing about",
)


@torch.no_grad()
def continue_tokens(
    model: Decoder, prompt: list[int], *, new_tokens: int, seq_len: int, seed: int
) -> list[int]:
    """`new_tokens` token ids after `prompt`, drawn from the model's distribution.

    The model sees at most the last `seq_len` tokens, the window it was trained on. Drawn on the
    CPU from `seed`, so that equal weights give equal text.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    device = model.embedding.weight.device
    tokens = list(prompt)
    for _ in range(new_tokens):
        window_BT = torch.tensor([tokens[-seq_len:]], device=device)
        logits_V: Tensor = model.logits(model(window_BT)[0, -1])
        probability_V = logits_V.float().softmax(0).cpu()
        tokens.append(int(torch.multinomial(probability_V, 1, generator=generator)))
    return tokens[len(prompt) :]
