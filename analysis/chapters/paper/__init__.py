"""The paper: what the study published, and its tables and figures made from our runs.

What a run is worth against it is told by the chapters `verify` and `contradictions`.
"""
