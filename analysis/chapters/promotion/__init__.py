"""A promotion: its stages and who goes on from each (results), and its section."""
