"""Plans a run on paper: bytes of a GPU, operations, seconds, and what to change if it doesn't fit."""
