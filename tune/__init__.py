"""Trials and searches: how they are asked for, run under Ray Tune, and kept in run folders.

Each room here imports only from those below it: commands, cluster, search, experiment, places and
progress, training, ledger, machine, run_reader, run_folder and foreign. Nothing of the model, and
no table of results.
"""

import os

# Before torch starts CUDA, since it reads this then. A share of a GPU caps the memory that torch
# reserves: with segments that grow, 1.03 times what is allocated at most, and 1.10 without.
if not os.environ.keys() & {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}:
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
