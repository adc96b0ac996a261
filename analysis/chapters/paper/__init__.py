"""The paper: what the study published, and its tables and figures made from our runs.

The chapter `verify` judges a run against it; `contradictions` judges the paper itself.
"""
