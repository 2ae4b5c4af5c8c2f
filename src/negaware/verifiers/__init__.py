"""Answer text → verdict: extraction, a fast exact path, and symbolic equality in killable worker processes."""
