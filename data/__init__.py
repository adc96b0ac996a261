"""Documents, tokenizer, tokens and batches: what a trial is trained and scored on.

Nothing here knows of models, of trials or of Ray.
"""
