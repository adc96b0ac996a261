"""Text that a decoder writes: samples of a trial, and a continuation of a user's prompt.

Shapes: B texts, T time, D d_model, V vocabulary, S drawn tokens of each text.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from quarterhour.model.attention import Past
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
    if not begun or not new_tokens:
        return [[] for _ in prompts]
    lengths = [len(prompt) for prompt in begun.values()]
    shortest = min(lengths)
    draws_TBV = torch.ones(
        max(lengths) - shortest + new_tokens, len(begun), model.config.vocab_size
    )
    for row, (place, length) in enumerate(zip(begun, lengths, strict=True)):
        generator = torch.Generator().manual_seed(seed + place)
        for draws_BV in draws_TBV[length - shortest :][:new_tokens]:
            draws_BV[row].exponential_(generator=generator)
    draws_TBV = draws_TBV.to(model.embedding.weight.device)
    drawn_BT = torch.stack([*_continued(model, [*begun.values()], draws_TBV, seq_len)], 1)
    continued = {
        place: drawn[length - shortest :][:new_tokens]
        for place, length, drawn in zip(begun, lengths, drawn_BT.tolist(), strict=True)
    }
    return [continued.get(place, []) for place in range(len(prompts))]


@torch.no_grad()
def stream_tokens(
    model: Decoder,
    prompt: list[int],
    *,
    new_tokens: int,
    seq_len: int,
    seed: int,
    temperature: float = 1.0,
) -> Iterator[int]:
    """The `new_tokens` token ids after a prompt, each as soon as it is drawn.

    With temperature 1 they are those of `continue_tokens`. Logits are divided by the temperature;
    with 0 the likeliest token follows. The prompt must have a token.
    """
    generator = torch.Generator().manual_seed(seed)
    device, one = model.embedding.weight.device, torch.ones(1, model.config.vocab_size)
    draws = (
        (one.exponential_(generator=generator) if temperature else one).to(device)
        for _ in range(new_tokens)
    )
    for token_B in _continued(model, [prompt], draws, seq_len, temperature or 1.0):
        yield int(token_B)


def _continued(
    model: Decoder,
    prompts: list[list[int]],
    draws: Iterable[Tensor],
    seq_len: int,
    temperature: float = 1.0,
) -> Iterator[Tensor]:
    """The tokens [B] at each place after the shortest prompt: the longer prompts' own, or drawn.

    Each place takes exponential numbers [B, V] from `draws`. The largest of the probabilities
    divided by them is a draw, as torch.multinomial has it. All texts have the same place, so that
    none sees another's padding. Until the window is full, what was computed is kept.
    """
    model.eval()
    shortest, device = min(map(len, prompts)), model.embedding.weight.device
    given = [torch.tensor(prompt) for prompt in prompts]
    given_BT = nn.utils.rnn.pad_sequence(given, batch_first=True, padding_value=-1).to(device)
    text_BT, past = given_BT[:, :shortest], [Past() for _ in model.layers]
    for draws_BV in draws:
        place = text_BT.shape[1]
        if place <= seq_len:
            hidden_BTD = model(text_BT[:, past[0].tokens :], past)
        else:
            hidden_BTD = model(text_BT[:, -seq_len:])
        logits_BV = model.logits(hidden_BTD[:, -1]).float() / temperature
        token_B = (logits_BV.softmax(1) / draws_BV).argmax(1)
        if place < given_BT.shape[1]:
            token_B = torch.where(given_BT[:, place] < 0, token_B, given_BT[:, place])
        text_BT = torch.cat([text_BT, token_B.unsqueeze(1)], 1)
        yield token_B
