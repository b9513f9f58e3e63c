"""Weights that stay in their files: rows are read where they are asked for, so a dictionary may exceed memory."""

from pullback.transcoders.lazy.encode import encode_in_blocks
from pullback.transcoders.lazy.maps import map_safetensors, place_of, read_here_and_there
from pullback.transcoders.lazy.rows import BLOCK_BYTES, HeldRows, MappedRows, Rows, in_memory

__all__ = [
    "BLOCK_BYTES",
    "HeldRows",
    "MappedRows",
    "Rows",
    "encode_in_blocks",
    "in_memory",
    "map_safetensors",
    "place_of",
    "read_here_and_there",
]
