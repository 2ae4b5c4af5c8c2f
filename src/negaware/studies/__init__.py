"""Studies: variants of one config under several seeds, and what their runs say when they are put side by side."""
