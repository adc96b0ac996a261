"""Points and spaces of the search: a trial's configuration, profiles, the six, protocols.

A point is a mapping of dotted paths to values on a profile's base.
"""
