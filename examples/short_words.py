"""A judge that uses other columns of the data file: right is one word of at most `longest` letters."""


def is_right(answer, problem):
    """Each row of short_words.jsonl has a column `longest`."""
    return answer.strip(" .").isalpha() and len(answer.strip(" .")) <= problem.metadata["longest"]
