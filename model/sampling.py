"""Text samples from a decoder, to look at what a trial has learnt."""

import torch
from torch import Tensor, nn

from quarterhour.model.decoder import Decoder

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
    model: Decoder, prompts: list[list[int]], *, new_tokens: int, seq_len: int, seed: int
) -> list[list[int]]:
    """`new_tokens` token ids after each prompt, drawn from the model's distribution.

    The model sees at most the last `seq_len` tokens, the window it was trained on. Drawn on the
    CPU from `seed` and the prompt's place, so that equal weights give equal text. A prompt without
    a token is not continued.
    """
    model.eval()
    generators = [torch.Generator().manual_seed(seed + place) for place in range(len(prompts))]
    texts = [list(prompt) for prompt in prompts]
    begun = [place for place, text in enumerate(texts) if text]
    for _ in range(new_tokens if begun else 0):
        probabilities = _next_probabilities(model, [texts[place] for place in begun], seq_len)
        for place, probability_V in zip(begun, probabilities, strict=True):
            drawn = torch.multinomial(probability_V, 1, generator=generators[place])
            texts[place].append(int(drawn))
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


def _next_probabilities(model: Decoder, texts: list[list[int]], seq_len: int) -> Tensor:
    """Probabilities [B, V] of the token after each of B texts, on the CPU."""
    windows = [torch.tensor(text[-seq_len:]) for text in texts]
    # No token sees the padding, which is to the right of it.
    tokens_BT = nn.utils.rnn.pad_sequence(windows, batch_first=True)
    hidden_BTD = model(tokens_BT.to(model.embedding.weight.device))
    last_BD = torch.stack([h_TD[len(w) - 1] for h_TD, w in zip(hidden_BTD, windows, strict=True)])
    return model.logits(last_BD).float().softmax(1).cpu()
