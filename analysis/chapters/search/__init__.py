"""A search: what it has come to, as tables and figures."""
