"""Problems with their prompt and verifier: generated, read from files or the hub, or a named set."""
