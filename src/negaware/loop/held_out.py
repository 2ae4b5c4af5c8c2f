"""The evaluations of a run: before training, on the way, and after it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from negaware.config import Config
from negaware.estimates import Estimate
from negaware.evaluation.before import Before, before_text, in_turn, read_before
from negaware.evaluation.evaluate import EvaluationResult, evaluate, write_results
from negaware.evaluation.options import EvaluationSampling
from negaware.evaluation.outcome import Counts
from negaware.files import replace_file
from negaware.loop.parts import Parts
from negaware.ranks import Ranks
from negaware.runs.folder import RunFolder
from negaware.runs.progress import Progress
from negaware.seeds import evaluation_seed
from negaware.tasks.task import Task


class HeldOut:
    """Asks a run's policy the held-out questions, by the config's settings; the first rank writes what came of it."""

    def __init__(self, config: Config, parts: Parts, folder: RunFolder, progress: Progress, ranks: Ranks) -> None:
        self.config, self.parts, self.folder, self.progress, self.ranks = config, parts, folder, progress, ranks

    def before(self, kept: Path | None) -> Before:
        """The evaluation before training: as another run has kept it in the file `kept`, else made here."""
        with ExitStack() as stack:
            if kept and self.ranks.is_first:
                stack.enter_context(in_turn(kept))
            found = self.ranks.from_first(lambda: kept and read_before(kept))
            if not found:
                found = Before(self.judge("before"), self.on_the_way(0))
            if self.ranks.is_first:
                for place in filter(None, (kept, self.folder.path / "evaluations" / "before.json")):
                    replace_file(place, before_text(found))
        return found

    def judge(self, moment: str) -> dict[str, Counts]:
        """Right answers at temperature 0 and of avg@k, on all held-out problems, written problem by problem."""
        final = self.config.evaluation.final
        greedy = final.model_copy(update={"temperature": 0.0, "completions": 1})
        found: dict[str, Counts] = {}
        for name, sampling in (("greedy_accuracy", greedy), (f"avg_at_{final.completions}", final)):
            result = self._evaluate(self.parts.held_out, sampling, is_first=moment == "before")
            for sentence in filter(None, (result.unjudged, result.all_truncated)):
                self.progress.note(f"{sentence} (evaluations/{moment}-{name}.jsonl has all)")
            if self.ranks.is_first:
                self.folder.require_in_place()
                write_results(result, self.folder.path / "evaluations" / f"{moment}-{name}.jsonl")
            if moment == "before":  # later there is a run to lose
                result.require_judged("Mend the judge, then go on with --resume.")
            found[name] = {"num_completions": result.num_completions, "num_correct": result.num_correct}
        return found

    def on_the_way(self, step: int) -> dict[str, float]:
        """The accuracy of this step, if it is due: at step 0, every so many steps, and at the last."""
        during = self.config.evaluation.during
        if during is None or (step % during.every and step != self.config.run.steps):
            return {}
        self.progress.phase("evaluating")
        task = self.parts.held_out
        few = replace(task, problems=task.problems[: during.num_problems])
        accuracy = self._evaluate(few, during, is_first=step == 0).avg_at_k
        if step == 0 and accuracy.caution:
            self.progress.note(f"held-out accuracy on the way: {accuracy.caution}")
        return accuracy_metrics(accuracy)

    def _evaluate(self, task: Task, sampling: EvaluationSampling, is_first: bool) -> EvaluationResult:
        policy, own = self.parts.policy, self.config.evaluation.seed if is_first else None
        params = sampling.params(policy.codec.stop_token_ids, policy.max_tokens)
        seed = evaluation_seed(self.config.run.seed if own is None else own)
        return evaluate(self.parts.asker, task, params, sampling.completions, seed, self.progress.advance)


def accuracy_metrics(estimate: Estimate) -> dict[str, float]:
    """An accuracy with its interval and the number of different questions behind it, as a step's metrics."""
    names = {"value": "accuracy", "low": "accuracy_low", "high": "accuracy_high", "num_questions": "num_questions"}
    return {f"evaluation/{name}": float(getattr(estimate, key)) for key, name in names.items()}
