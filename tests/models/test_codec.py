"""A chat template is somebody's program: what it raises, and that it doesn't end, is one sentence."""

import threading

import pytest

from negaware.models import codec
from negaware.models.load import load_codec
from tiny_run import write_tiny_model

SYSTEM = {"role": "system", "content": "0"}
USER = {"role": "user", "content": "1+1"}
WITHOUT_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ messages[0].content }}"
)
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ messages[0].content }}"


@pytest.fixture
def folder(tmp_path):
    return write_tiny_model(tmp_path)


def test_a_template_without_a_system_role(folder):
    (folder / "chat_template.jinja").write_text(WITHOUT_SYSTEM)
    loaded = load_codec(str(folder))
    assert loaded.decode(loaded.encode([USER])) == "1+1"
    said = (
        r"can't be used for messages of the roles system, user \(System role not supported\); leave the task's system_p"
    )
    with pytest.raises(ValueError, match=said):
        loaded.encode([SYSTEM, USER])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 1 / 0 }}", r"\(division by zero\)"),
        ("{{ messages[7].content }}", r"\(list object has no element 7\)"),
        ("{{ messages.content.x }}", r"\(.*has no attribute 'content'\)"),
        ("{{ 1 + 'a' }}", r"\(unsupported operand"),
        ("{% if %}", r"\(Expected an expression"),
        ("{{ range(10 ** 9) | list }}", r"\(Range too big"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", r"\(maximum recursion depth exceeded"),
        ("{{ ''.__class__.mro() }}", r"\(access to attribute '__class__' of 'str' object is unsafe"),
        ("{# nothing #}", r"\(nothing comes out\)"),
    ],
)
def test_a_template_that_fails(template, said, folder):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(
        ValueError, match=rf"^The chat template of .* roles user {said}.*; put another chat_template.jinja"
    ):
        load_codec(str(folder))


def test_a_template_that_does_not_end(folder, monkeypatch):
    (folder / "chat_template.jinja").write_text(ENDLESS)
    monkeypatch.setattr(codec, "RENDER_SECONDS", 0.2)
    with pytest.raises(ValueError, match=r"\(it isn't done after 0.2 seconds\); put another chat_template.jinja"):
        load_codec(str(folder))


def test_it_renders_on_other_threads_too(folder):
    loaded, found = load_codec(str(folder)), []
    thread = threading.Thread(target=lambda: found.append(loaded.encode([USER])))
    thread.start()
    thread.join()
    assert found == [loaded.encode([USER])]
