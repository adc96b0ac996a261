"""Train the trial of a file that `tiny.write_spec` wrote, with a checkpoint at every row."""

import json
import sys
from pathlib import Path

import torch
from tiny import train

import quarterhour.tune.training.checkpoint
from quarterhour.data.tokens import TokenData
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.tune.ledger import TrialSpec

if __name__ == "__main__":
    torch.set_num_threads(1)
    quarterhour.tune.training.checkpoint.CHECKPOINT_SECONDS = -1.0
    fields = json.loads(Path(sys.argv[1]).read_text())
    tokens = TokenData(Path(fields["tokens"]))
    spec = TrialSpec(
        name=fields["name"],
        config=TrialConfig.from_dict(fields["config"]),
        data_fingerprint=tokens.manifest.fingerprint,
        folder=Path(fields["folder"]),
    )
    print("training", flush=True)
    train(spec, tokens)
