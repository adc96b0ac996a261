"""What tokens say as text, and what of a text they do not say."""

import json
from collections import Counter

from tokenizers import Tokenizer


def lost_share(tokenizer: Tokenizer, texts: list[str], tokens: list[list[int]]) -> float:
    """Share of the bytes of `texts` that decoding their `tokens` does not restore.

    A space before a text does not count: some tokenizers put it in or take it away.
    """
    pairs = zip(texts, tokens, strict=True)
    changed = [(text, ids) for text, ids in pairs if not _gives_back(tokenizer, ids, text)]
    unknown = _unknown_token(tokenizer) if changed else None
    lost = 0
    for text, ids in changed:
        known = _decode(tokenizer, [token for token in ids if token != unknown])
        missing = Counter(text) - Counter(known)
        lost += max(1, sum(len(character.encode()) * n for character, n in missing.items()))
    return lost / sum(len(text.encode()) for text in texts)


def _gives_back(tokenizer: Tokenizer, ids: list[int], text: str) -> bool:
    return _decode(tokenizer, ids).removeprefix(" ") == text.removeprefix(" ")


def _decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """All that the ids say: without a decoder the library would put spaces between them."""
    if tokenizer.decoder:
        return tokenizer.decode(ids, skip_special_tokens=False)
    return "".join(tokenizer.id_to_token(token) or "" for token in ids)


def _unknown_token(tokenizer: Tokenizer) -> int | None:
    """The id that stands for what the vocabulary lacks, if there is one."""
    model = json.loads(tokenizer.to_str())["model"]
    name = model.get("unk_token")
    return model.get("unk_id") if name is None else tokenizer.token_to_id(name)


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The prompt's token ids; none where it has characters or words that cannot be encoded."""
    try:
        return tokenizer.encode(prompt, add_special_tokens=False).ids
    except Exception:  # the library raises plain Exception without an unknown token
        return []


def continuation_text(tokenizer: Tokenizer, prompt: list[int], continuation: list[int]) -> str:
    """What the continuation says after the prompt: alone it may lose the space it begins with."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + continuation)
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(continuation)
