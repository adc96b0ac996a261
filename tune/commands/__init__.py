"""The command line, one file for each group of commands: options in, one request down, text out.

How anything is trained, searched or judged is not decided here.
"""
