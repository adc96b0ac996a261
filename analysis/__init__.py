"""What is read off finished runs: the study's eight tables, ours beside the published figures.

It reads run folders and the study's own figures (published/*.json), and trains nothing.
"""
