"""negaware: train a language model on its own right and wrong answers.

Nothing is imported here, so that `negaware.objectives` needs torch alone and `negaware --help` is instant.
"""

__version__ = "0.1.0"
