"""Rollouts: engines that sample completions, and the collector that turns them into batches of informative groups."""
