"""A search: what it has come to (results), its tables, its figures and its two sections.

Nothing here searches: `tune.search` does.
"""
