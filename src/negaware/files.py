"""Files: written completely or not at all, never over a command's input; and JSON read line by line."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def aside_of(path: Path, mark: str = "") -> Path:
    """The path where a file is written before it replaces the old one."""
    return path.with_name(f".{path.name}{mark}.partial")


@contextmanager
def written_aside(path: Path, mark: str = "") -> Iterator[Path]:
    """A block that writes the file it is given, which is then made durable and replaces `path`.

    On an error the previous content stays. Two processes that may write the same file at once need different `mark`s.
    """
    aside = aside_of(path, mark)
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def replace_file(path: Path, text: str) -> None:
    """Makes `text` the durable content of the file; on an error the previous content stays."""
    with explained_full_disk(path), written_aside(path) as aside:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A lone surrogate, which UTF-8 can't encode, becomes \udXXX: its escape in JSON and YAML strings.
        aside.write_bytes(text.encode("utf-8", "backslashreplace"))


def append(path: Path, content: bytes) -> None:
    """Appends the content and makes it durable; on an error the file has its previous length."""
    with explained_full_disk(path), path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            view = memoryview(content)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


def sync(path: Path) -> None:
    """Makes the content of a file or a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained_full_disk(path: Path) -> Iterator[None]:
    """A block in which the OSError of a full disk says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "no space left on the disk (or in the quota); free some, then go on with --resume"
            raise OSError(error.errno, reason, str(path)) from error
        raise


def json_lines(lines: Iterable[bytes], name: object, advice: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("`name`, line 3", its object) for each line that isn't blank.

    ValueError with the `advice` for a line that isn't a JSON object in UTF-8. Only "\\n" ends a line: a text of a
    model may hold other separators.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"{where}: not UTF-8; save the file as UTF-8") from None
        except (ValueError, RecursionError) as error:  # an integer of 5,000 digits is a bare ValueError
            raise ValueError(f"{where}: not JSON ({str(error)[:80]}); {advice}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}; {advice}")
        yield where, row


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The objects of a file that negaware wrote ([] without a file), and whether its last line is incomplete.

    A kill can leave an incomplete last line. ValueError for any other line that isn't a JSON object.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    torn = bool(lines) and not _is_json(lines[-1])
    whole = lines[:-1] if torn else lines
    return [row for _, row in json_lines(whole, path, "correct or delete that line")], torn


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.strip() or b"{}")
    except (ValueError, RecursionError):
        return False
    return True


def require_no_input(output: Path, inputs: Iterable[Path]) -> None:
    """ValueError if `output` is one of the inputs, even by another name or through a link."""
    for path in inputs:
        if output.exists() and path.exists() and os.path.samefile(output, path):
            raise would_lose(output, f"{path}, which this command reads")


def would_lose(output: Path, what: str) -> ValueError:
    """The error that refuses to replace a file with `output`."""
    return ValueError(f"-o {output} would replace {what}; give -o another file.")
