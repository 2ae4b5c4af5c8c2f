"""A judge of your own: an answer is right if it has the sum and at most five words."""


def is_right(answer, problem):
    """`answer` is the model's whole text; `problem` has the question and, if there is one, the gold answer."""
    words = answer.replace(".", " ").split()
    return len(words) <= 5 and problem.answer in words
