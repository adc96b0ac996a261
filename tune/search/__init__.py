"""A search without Ray: its settings, what comes next, what stops early, and its Optuna study.

How trials are run, and on which machines, is not known here.
"""
