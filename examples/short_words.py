"""A judge that reads its file's other columns: right is one word of at most `longest` letters."""


def is_right(answer, problem):
    """Rows of short_words.jsonl have `longest`."""
    return answer.strip(" .").isalpha() and len(answer.strip(" .")) <= problem.metadata["longest"]
