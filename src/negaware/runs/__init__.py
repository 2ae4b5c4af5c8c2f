"""The run folder and what is made of it: metrics, answers, trackers, live progress, tables and the report."""
