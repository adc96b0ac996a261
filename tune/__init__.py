"""Trials, and Ray Tune running them: the training loop, the grid, the ledger, the command line.

`trial` knows nothing of Ray; only `cli` sees the analysis.
"""
