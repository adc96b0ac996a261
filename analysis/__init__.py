"""What runs have come to, finished or not: tables, figures, judgements, and the report of them.

It reads run folders and the study's published figures. It trains nothing, and knows neither torch
nor Ray; of `tune` it knows only what describes and reads run folders.
"""
