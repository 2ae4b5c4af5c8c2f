"""A run, from its config to the finished model: the only place where the sampling and the learning half meet."""
