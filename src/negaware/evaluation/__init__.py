"""How good a model is at a task: sampling, grading, and estimates with their intervals."""
