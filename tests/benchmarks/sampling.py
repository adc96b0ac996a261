"""How long a model writes: 200 tokens on one core, in its seconds, with the past kept and without.

python tests/benchmarks/sampling.py
"""

import time

import torch

from quarterhour.model.decoder import Decoder
from quarterhour.model.sampling import stream_tokens
from quarterhour.search_spaces.profiles import PAPER, QUICK

TOKENS = 200


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    for profile in (QUICK, PAPER):
        config = profile.baseline
        model, seq_len = Decoder(config.model, seed=0).eval(), config.data.seq_len
        begin = time.process_time()
        text = [1, *stream_tokens(model, [1], new_tokens=TOKENS, seq_len=seq_len, seed=0)]
        kept = time.process_time() - begin
        begin = time.process_time()
        for end in range(1, TOKENS + 1):
            model.logits(model(torch.tensor([text[max(0, end - seq_len) : end]]))[:, -1])
        anew = time.process_time() - begin
        print(f"{profile.name}, {TOKENS} tokens: {kept:.2f} s; without what is kept {anew:.2f} s")


if __name__ == "__main__":
    main()
