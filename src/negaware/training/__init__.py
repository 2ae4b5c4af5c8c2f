"""The learning half: groups → rows → log-probabilities → one optimizer step. It knows nothing of texts or engines."""
