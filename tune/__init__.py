"""Trials and searches: how they are asked for, run under Ray Tune, and kept in run folders.

Each room here imports only from those below it: commands, cluster, search, experiment, places and
progress, training, ledger, machine, run_folder. Nothing of the model, and no table of results.
"""
