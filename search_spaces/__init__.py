"""What can be trained: points, spaces, budgets, profiles, the six reference points, protocols.

A point maps dotted paths to values, which are put on a profile's baseline. Nothing here trains.
"""
