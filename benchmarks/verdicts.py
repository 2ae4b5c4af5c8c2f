"""What a judge of half a second an answer costs a step: while answers are sampled, and after all are.

    python benchmarks/verdicts.py

SmolLM2 answers 8 questions 8 times, in at most 128 tokens, with the local engine. The three ways take turns; each
figure is the median. The last line is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from negaware.models.load import load_policy
from negaware.rollout.ask import Asker
from negaware.rollout.engine import SamplingParams
from negaware.rollout.local import LocalEngine
from negaware.tasks.load import load_task
from negaware.tasks.options import ArithmeticOptions
from negaware.tasks.task import Task
from negaware.verifiers.function import FunctionVerifier

QUESTIONS, COMPLETIONS, TOKENS, REPEATS = 8, 8, 128, 3
PROMPT = "{question} Explain every step of the calculation in words, then give the answer."


def main() -> None:
    policy = load_policy("SmolLM2-135M-Instruct", torch.float32, "cpu")
    codec, engine = policy.codec, LocalEngine(policy.network, max_sequences=32)
    params = SamplingParams(TOKENS, stop_token_ids=codec.stop_token_ids)
    asker = Asker(engine, codec.encode, codec.decode)
    generated = load_task(ArithmeticOptions(prompt=PROMPT))
    problems = generated.problems[:QUESTIONS]
    tasks = {}
    for name in ("at_once", "half_a_second"):
        verifier = FunctionVerifier.named(f"slow_judge:{name}", [Path(__file__).parent])
        tasks[name] = Task(name, problems, generated.prompt, verifier)
    prompts = [tuple(codec.encode(generated.messages(problem))) for problem in problems]

    def meanwhile(task: Task) -> None:
        asker.ask(task, problems, prompts, COMPLETIONS, params, seed=0)

    def afterwards(task: Task) -> None:
        groups = engine.generate(prompts, COMPLETIONS, params, seed=0)
        answers = [(problem, done) for problem, group in zip(problems, groups, strict=True) for done in group]
        texts = [codec.decode(done.token_ids.tolist()) for _, done in answers]
        task.grade(texts, [problem for problem, _ in answers], [done.finish_reason for _, done in answers])

    ways: dict[str, Callable[[], None]] = {
        "no wait": lambda: meanwhile(tasks["at_once"]),
        "half a second, while sampling": lambda: meanwhile(tasks["half_a_second"]),
        "half a second, after sampling": lambda: afterwards(tasks["half_a_second"]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):
        for name, ask in ways.items():
            start = time.perf_counter()
            ask()
            if repeat:  # the first starts the judges
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.1f} s, {median / medians['no wait']:.2f} of it without the wait")
    print(json.dumps(medians))
    for task in tasks.values():
        task.verifier.close()


if __name__ == "__main__":
    main()
