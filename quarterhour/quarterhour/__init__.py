"""Hyperparameter search for quarter-hour pretraining runs of small decoder language models.

The five packages lie at the top of the source tree; the links beside this file give them this name.
"""
