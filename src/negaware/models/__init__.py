"""The policy: loading a model with its tokenizer, and turning its hidden states into log-probabilities."""
