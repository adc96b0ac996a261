"""The decoder and what trains it: parameters, loss, optimizer, schedule, text samples.

Nothing here knows of data, of trials or of Ray.
"""
