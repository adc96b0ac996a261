"""The paper: what the study published, and its tables and figures made from our runs."""
