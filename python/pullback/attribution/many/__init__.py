"""Graphs of thousands of prompts: in batches, resumable, in shards, with one table."""

from pullback.attribution.many.devices import attribute_on_devices
from pullback.attribution.many.index import read_index, write_index
from pullback.attribution.many.run import attribute_many

__all__ = ["attribute_many", "attribute_on_devices", "read_index", "write_index"]
