"""One trial without Ray: its steps, evaluations, checkpoints, and all that it writes.

Which trials there are, and how many run at once, is not known here.
"""
