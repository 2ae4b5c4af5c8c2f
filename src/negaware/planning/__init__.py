"""What a run takes, on paper: bytes a GPU, operations, seconds, and what to change where it doesn't fit."""
