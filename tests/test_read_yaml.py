"""YAML that explodes, holds itself, or spells half of a character: one sentence, at once."""

import pytest

from negaware.validation import MAX_CHARACTERS, read_yaml

LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "it stands for more than 100,000 values"),
        (LAUGHS + "task: *a39\n", "it stands for more than 100,000 values"),
        ("a: &a {<<: *a}", "nested too deeply, or in itself"),
        ("a: &a [*a]", "nested too deeply, or in itself"),
        ("&a {b: {c: *a}}", "nested too deeply, or in itself"),
        ("&a {*a : 1}", "nested too deeply, or in itself|unhashable"),
        ("[" * 5000, "nested too deeply"),
        ("{a: " * 3000 + "1" + "}" * 3000, "nested too deeply"),
        (r'a: "\ud800"', "found half of a character"),
        (r'{"\udfff": 1}', "found half of a character"),
        ("a: \ud800", "unacceptable character|special characters"),
        ("a: " + "x" * MAX_CHARACTERS, "it has 1,000,003 characters, and at most 1,000,000 are read"),
        ("a: 2026-13-45", "month must be in 1..12"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("a: !!timestamp x", "can't build"),
        ("a: !!int x", "invalid literal"),
        ("a: !!int", "can't build"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("? [1]\n: 2", "unhashable"),
        ("<<: 3", "expected a mapping or list of mappings for merging"),
        ("a: !!binary é", "failed to convert base64"),
    ],
)
def test_what_is_no_plain_data(text, said):
    with pytest.raises(ValueError, match=said) as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value)


def test_anchors_that_say_a_thing_twice_are_fine():
    assert read_yaml("a: &a {x: [1, 2]}\nb: *a\nc: {<<: *a, y: 3}") == {
        "a": {"x": [1, 2]},
        "b": {"x": [1, 2]},
        "c": {"x": [1, 2], "y": 3},
    }


def test_as_many_values_as_may_be():
    assert len(read_yaml(f"[{'1, ' * 40_000}]")) == 40_000
