"""Ray: starting or joining it, its machines, trials and searches under Ray Tune.

Nothing outside this room imports Ray. What to train next and what a trial does is not decided here.
"""
