"""What the recipes' models read: the messages of each set, and the text that Qwen2.5's chat templates make of them."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from negaware.config import load_config
from negaware.tasks.load import load_task
from negaware.tasks.options import PROMPTS, BenchmarkOptions, parse_task
from tiny_run import tiny_tokenizer

CONFIGS = Path(__file__).parents[2] / "configs"
BOX = r"Please reason step by step, and put your final answer within \boxed{}."
QUESTION = r"Let $f(x) = \frac{1}{2}$. Find $f$."
DAPO = (
    r"Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    r"\boxed{$Answer} (without quotes) where $Answer is the answer to the problem."
    "\n\n" + QUESTION + "\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)


def qwen(default_system: str) -> str:
    """A chat template that does with these messages what Qwen2.5's does: its own system message if none is given."""
    return (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + default_system + "<|im_end|>\n{% endif %}"
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


TEMPLATES = {"7b": qwen(BOX), "32b": qwen("You are a helpful assistant.")}


def rendered(options: BenchmarkOptions, template: str, folder: Path) -> str:
    """The prompt of the set's only question."""
    name = f"{options.name}.jsonl"
    (folder / name).write_text(json.dumps({"id": "q", "question": QUESTION, "answer": "1/2"}))
    task = load_task(options, folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    text = tokenizer.apply_chat_template(task.messages(task.problems[0]), tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("name", ["7b", "32b"])
@pytest.mark.parametrize("part", ["task", "evaluation"])
def test_the_recipes_ask_in_dapos_words_and_say_step_by_step_once(name: str, part: str, tmp_path: Path) -> None:
    config = load_config(CONFIGS / f"paper/nft_{name}.yaml")
    options = config.task if part == "task" else config.evaluation.task
    assert isinstance(options, BenchmarkOptions)
    assert rendered(options, TEMPLATES[name], tmp_path) == (
        f"<|im_start|>system\n{BOX}<|im_end|>\n<|im_start|>user\n{DAPO}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_recipes_other_sets_are_asked_as_they_are_said_to_be(tmp_path: Path) -> None:
    """Each `negaware evaluate` line in the 7B run file, by its own text: all five sets, a system message each, once."""
    lines = [line for line in (CONFIGS / "paper/nft_7b.yaml").read_text().splitlines() if "negaware evaluate" in line]
    asked = {}
    for line in lines:
        options = parse_task(line.split('"')[1])
        assert isinstance(options, BenchmarkOptions)
        asked[options.name] = rendered(options, TEMPLATES["7b"], tmp_path)
        assert f"--samples {32 if options.name in ('aime25', 'amc23') else 1} " in line
    before, after = f"<|im_start|>system\n{BOX}<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    sets = {"aime25": DAPO, "amc23": DAPO, "math500": QUESTION, "olympiadbench": QUESTION, "minerva_math": QUESTION}
    assert asked == {name: before + text + after for name, text in sets.items()}


def test_a_prompt_has_a_name_or_is_written_out() -> None:
    for kind in ("{kind: benchmark, name: amc23", "{kind: dataset, path: a.jsonl"):
        assert parse_task(kind + "}").prompt == PROMPTS["step_by_step"]
        assert parse_task(kind + ", prompt: bare}").prompt == "{question}"
        assert parse_task(kind + ", prompt: 'Q: {question}', system_prompt: Hm.}").prompt == "Q: {question}"
        with pytest.raises(
            ValueError,
            match=r"must contain \{question\}, or be one of step_by_step, boxed, answer_tag, bare, dapo, got 'dap",
        ):
            parse_task(kind + ", prompt: dapoo}")


@pytest.mark.parametrize(
    ("kind", "prompt"),
    [
        ("{kind: arithmetic", "boxed"),
        ("{kind: reasoning_gym, name: chain_sum", "answer_tag"),
        ("{kind: dataset, path: PROBLEMS", "step_by_step"),
        ("{kind: benchmark, name: amc23", "step_by_step"),
    ],
)
def test_every_kind_of_task_takes_its_words_and_where_its_answers_stand(kind: str, prompt: str, tmp_path: Path) -> None:
    """The same three options for all, and what each asks without them."""
    if "reasoning_gym" in kind:
        pytest.importorskip("reasoning_gym")
    row = json.dumps({"id": "q", "question": "What is 50 + 7?", "answer": "57"})
    for name in ("amc23.jsonl", "own.jsonl"):
        (tmp_path / name).write_text(row)
    kind = kind.replace("PROBLEMS", str(tmp_path / "own.jsonl")) + ", num_problems: 1"
    plain = load_task(parse_task(kind + "}"), tmp_path)
    told = load_task(
        parse_task(kind + ", prompt: 'Q: {question}', system_prompt: Be brief., extract: [boxed, hashes]}"), tmp_path
    )
    problem = plain.problems[0]
    assert plain.messages(problem) == [
        {"role": "user", "content": PROMPTS[prompt].replace("{question}", problem.question)}
    ]
    assert told.messages(problem) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"Q: {problem.question}"},
    ]
    gold = problem.answer
    texts = [f"#### {gold}", rf"So \boxed{{{gold}}}.", f"It is {gold}", rf"#### {gold} or \boxed{{1{gold}}}"]
    with closing(told.verifier), closing(plain.verifier):
        assert [each.correct for each in told.grade(texts, [problem] * 4, ["stop"] * 4)] == [True, True, False, False]
        assert [each.correct for each in told.grade([told.as_answer(gold)], [problem], ["stop"])] == [True]
        assert [each.correct for each in plain.grade([plain.as_answer(gold)], [problem], ["stop"])] == [True]


@pytest.mark.parametrize(
    "kind", ["arithmetic", "reasoning_gym, name: ab", "dataset, path: a.jsonl", "benchmark, name: math"]
)
def test_every_kind_of_task_refuses_a_method_that_there_is_not(kind: str) -> None:
    with pytest.raises(ValueError, match=r"task.extract: there is no method 'box'; did you mean 'boxed'\?"):
        parse_task(f"{{kind: {kind}, extract: box}}")


def test_the_verifier_reads_both_forms_of_an_answer(tmp_path: Path) -> None:
    """In a box, as asked, or after "Answer:", as DAPO's own words ask."""
    name = "dapo_math_17k"
    (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": "q", "question": QUESTION, "answer": "34"}))
    task = load_task(BenchmarkOptions(name=name, prompt="dapo"), tmp_path)
    texts = ["So it is.\n\nAnswer: \\boxed{34}", "So it is.\n\nAnswer: 34", "Answer: \\boxed{35}", "It is 34"]
    verdicts = task.grade(texts, [task.problems[0]] * 4, ["stop"] * 4)
    task.verifier.close()
    assert [verdict.correct for verdict in verdicts] == [True, True, False, False]
