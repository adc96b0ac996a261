"""Text samples from a decoder, to look at what a trial has learnt.

Shapes: B texts, T time, D d_model, V vocabulary, S drawn tokens of each text.
"""

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

    The model sees at most the last `seq_len` tokens, the window it was trained on. What is random
    is drawn on the CPU from `seed` and the prompt's place, so that equal weights give equal text.
    A prompt without a token is not continued. The model's device is waited for once, at the end.
    """
    begun = {place: prompt for place, prompt in enumerate(prompts) if prompt}
    if not begun:
        return [[] for _ in prompts]
    model.eval()
    draws_SBV = _draws(new_tokens, model.config.vocab_size, [seed + place for place in begun])
    continued = dict(
        zip(begun, _continued(model, [*begun.values()], draws_SBV, seq_len), strict=True)
    )
    return [continued.get(place, []) for place in range(len(prompts))]


def _continued(
    model: Decoder, prompts: list[list[int]], draws_SBV: Tensor, seq_len: int
) -> list[list[int]]:
    """The S tokens after each of B prompts that `draws_SBV` chooses."""
    device, ends = model.embedding.weight.device, [len(prompt) for prompt in prompts]
    padded = [torch.tensor([*prompt, *[0] * len(draws_SBV)]) for prompt in prompts]
    texts_BT = nn.utils.rnn.pad_sequence(padded, batch_first=True).to(device)
    ends_B1 = torch.tensor(ends, device=device).unsqueeze(1)
    for step, draws_BV in enumerate(draws_SBV.to(device)):
        longest = min(seq_len, max(ends) + step)
        probabilities_BV = _next_probabilities(model, texts_BT, ends_B1, longest)
        texts_BT.scatter_(1, ends_B1, (probabilities_BV / draws_BV).argmax(1, keepdim=True))
        ends_B1 += 1
    texts = zip(texts_BT.tolist(), ends, strict=True)
    return [text[end : end + len(draws_SBV)] for text, end in texts]


def _draws(new_tokens: int, vocab_size: int, seeds: list[int]) -> Tensor:
    """Exponential numbers [S, B, V] for S tokens of each of B texts.

    The largest of the probabilities divided by such numbers is a draw, as torch.multinomial has it.
    """
    draws_SBV = torch.empty(new_tokens, len(seeds), vocab_size)
    for place, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        for draws_BV in draws_SBV:
            draws_BV[place].exponential_(generator=generator)
    return draws_SBV


def _next_probabilities(model: Decoder, texts_BT: Tensor, ends_B1: Tensor, longest: int) -> Tensor:
    """Probabilities [B, V] of the token after the first `ends_B1` tokens of each text.

    Of these the model sees the last `longest`. No token sees those after the end.
    """
    starts_B1 = (ends_B1 - longest).clamp_(min=0)
    windows_BT = texts_BT.gather(1, starts_B1 + torch.arange(longest, device=texts_BT.device))
    hidden_BTD = model(windows_BT)
    last_BD = hidden_BTD.take_along_dim((ends_B1 - starts_B1 - 1).unsqueeze(2), 1).squeeze(1)
    return model.logits(last_BD).float().softmax(1)
