"""The mark of a field that came after version 0.1."""

from types import MappingProxyType

# At its default, such a field is no part of a trial's key: finished trials without it keep theirs.
CHOICE = MappingProxyType({"choice": True})
