"""Regular expressions that count their own steps: a backtracking matcher over `re`'s parse tree, one step a node tried.

Seconds depend on the machine; steps don't. It explores what `re` explores, in the same order, without its shortcuts.
"""

import re
from collections.abc import Iterator
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

_WORD, _SPACE, _DIGIT = (re.compile(kind) for kind in (r"\w", r"\s", r"\d"))
_CATEGORIES = {
    sre.CATEGORY_DIGIT: (_DIGIT, True),
    sre.CATEGORY_NOT_DIGIT: (_DIGIT, False),
    sre.CATEGORY_SPACE: (_SPACE, True),
    sre.CATEGORY_NOT_SPACE: (_SPACE, False),
    sre.CATEGORY_WORD: (_WORD, True),
    sre.CATEGORY_NOT_WORD: (_WORD, False),
}
_SINGLE = {sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN}
Groups = dict[int, tuple[int, int]]


class StepCounter:
    """Matches like a compiled pattern and adds up `steps`."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.flags = pattern.flags
        self.tree = list(_parser.parse(pattern.pattern, pattern.flags))
        self.steps = 0

    def ends(self, text: str, start: int) -> Iterator[int]:
        """Where matches that begin at `start` end, best first."""
        self.text, self.groups = text, {}
        return self._sequence(self.tree, 0, start)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where the matches of `finditer` begin and end, empty ones left out."""
        found, start = [], 0
        while start <= len(text):
            end = next(self.ends(text, start), None)
            if end is not None and end > start:
                found.append((start, end))
                start = end
            else:
                start += 1
        return found

    def full(self, text: str) -> bool:
        """Whether `fullmatch` succeeds."""
        return any(end == len(text) for end in self.ends(text, 0))

    def _sequence(self, nodes: list[Any], index: int, at: int) -> Iterator[int]:
        if index == len(nodes):
            yield at
            return
        for end in self._node(nodes[index], at):
            yield from self._sequence(nodes, index + 1, end)

    def _node(self, node: tuple[Any, Any], at: int) -> Iterator[int]:
        self.steps += 1
        kind, value = node
        if kind in _SINGLE:
            if self._accepts(node, at):
                yield at + 1
        elif kind is sre.AT:
            if self._stands(value, at):
                yield at
        elif kind is sre.BRANCH:
            for option in value[1]:
                yield from self._sequence(list(option), 0, at)
        elif kind is sre.SUBPATTERN:
            number, _, _, body = value
            for end in self._sequence(list(body), 0, at):
                before = self.groups.get(number)
                self.groups[number] = (at, end)
                yield end
                self.groups[number] = before
        elif kind is sre.ATOMIC_GROUP:
            yield from self._first(self._sequence(list(value), 0, at))
        elif kind is sre.POSSESSIVE_REPEAT:
            yield from self._possessive(value, at)
        elif kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            yield from self._repeat(value, at, greedy=kind is sre.MAX_REPEAT)
        elif kind in (sre.ASSERT, sre.ASSERT_NOT):
            direction, body = value
            begin = at if direction > 0 else at - _parser.SubPattern.getwidth(body)[0]
            ends = () if begin < 0 else self._sequence(list(body), 0, begin)
            met = any(direction > 0 or end == at for end in ends)
            if met is (kind is sre.ASSERT):
                yield at
        elif kind is sre.GROUPREF:
            begin, finish = self.groups[value]
            said = self.text[begin:finish]
            if self.text.startswith(said, at):
                yield at + len(said)
        else:
            raise NotImplementedError(kind)

    def _first(self, ends: Iterator[int]) -> Iterator[int]:
        end = next(ends, None)
        if end is not None:
            yield end

    def _possessive(self, value: Any, at: int) -> Iterator[int]:
        least, most, body = value
        count = 0
        while count < most:
            end = next(self._sequence(list(body), 0, at), None)
            if end is None or (end == at and count >= least):
                break
            at, count = end, count + 1
        if count >= least:
            yield at

    def _repeat(self, value: Any, at: int, *, greedy: bool) -> Iterator[int]:
        least, most, body = value
        nodes = list(body)
        if len(nodes) == 1 and nodes[0][0] in _SINGLE and greedy:
            end = at
            while end - at < most and self._accepts(nodes[0], end):
                self.steps += 1
                end += 1
            while end - at >= least:
                self.steps += 1
                yield end
                end -= 1
            return
        yield from self._again(nodes, at, least, most, 0, greedy)

    def _again(self, nodes: list[Any], at: int, least: int, most: int, count: int, greedy: bool) -> Iterator[int]:
        if not greedy and count >= least:
            yield at
        if count < most:
            for end in self._sequence(nodes, 0, at):
                if end > at or count < least:
                    yield from self._again(nodes, end, least, most, count + 1, greedy)
        if greedy and count >= least:
            yield at

    def _accepts(self, node: tuple[Any, Any], at: int) -> bool:
        if at >= len(self.text):
            return False
        kind, value = node
        character = self.text[at]
        if kind is sre.ANY:
            return character != "\n" or bool(self.flags & re.DOTALL)
        if kind is sre.IN:
            negated = value[0][0] is sre.NEGATE
            return negated is not any(self._in(item, character) for item in value[negated:])
        return self._same(character, value) is (kind is sre.LITERAL)

    def _in(self, item: tuple[Any, Any], character: str) -> bool:
        kind, value = item
        if kind is sre.LITERAL:
            return self._same(character, value)
        if kind is sre.CATEGORY:
            pattern, wanted = _CATEGORIES[value]
            return bool(pattern.match(character)) is wanted
        low, high = value
        forms = self._cases(character)
        return any(low <= ord(form) <= high for form in forms)

    def _same(self, character: str, code: int) -> bool:
        return chr(code) in self._cases(character)

    def _cases(self, character: str) -> set[str]:
        cases = {character}
        if self.flags & re.IGNORECASE:
            cases |= {form for form in (character.lower(), character.upper()) if len(form) == 1}
        return cases

    def _stands(self, place: Any, at: int) -> bool:
        before, after = self.text[at - 1 : at] if at else "", self.text[at : at + 1]
        if place is sre.AT_BEGINNING_STRING or (place is sre.AT_BEGINNING and not self.flags & re.MULTILINE):
            return at == 0
        if place is sre.AT_BEGINNING:
            return before in ("", "\n")
        if place is sre.AT_END:
            last = self.text[at:] in ("", "\n")
            return last or (bool(self.flags & re.MULTILINE) and after == "\n")
        if place is sre.AT_END_STRING:
            return not after
        boundary = bool(_WORD.match(before)) is not bool(_WORD.match(after))
        return boundary is (place is sre.AT_BOUNDARY)
