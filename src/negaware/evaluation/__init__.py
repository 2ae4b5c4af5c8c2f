"""Evaluates a model on a task: sampling, grading, and estimates with intervals."""
