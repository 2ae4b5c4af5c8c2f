"""A run's config: YAML file and command-line overrides → one frozen, checked `Config`. No model or data is loaded.

An error is one sentence with the field, its value, and what to write instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model, model_validator

from negaware.evaluation.options import EvaluationOptions
from negaware.models.options import ModelOptions
from negaware.objective_options import OPTIONS, ObjectiveOptions, user_loss_options, written_out
from negaware.rollout.options import RolloutOptions
from negaware.tasks.options import TaskOptions, task_fields
from negaware.training.options import TrainingOptions
from negaware.validation import Options, listed, read_yaml, validated


class ConfigError(ValueError):
    """The config can't be used as it is."""


class RunOptions(Options):
    """How long, where to, and what is kept."""

    folder: Path | None = None
    """The run's folder; by default runs/<name of the config file>, followed by -compare for `negaware compare`."""
    steps: int = Field(ge=1)
    """Rollout steps: sample, verify, train."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides everything random: questions, answers, mini-batches."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Steps from one checkpoint to the next."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the newest checkpoints are kept."""
    trackers: Annotated[
        tuple[Literal["tensorboard", "wandb", "trackio"], ...],
        BeforeValidator(listed),
    ] = ()
    """Where metrics are written besides metrics.jsonl."""


class Config(Options):
    """Everything about a run."""

    model: ModelOptions
    """What is trained."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    data_dir: Path | None = None
    """A folder of local files that replace the hub's named sets."""
    task: TaskOptions
    """The problems to train on."""
    objective: ObjectiveOptions = OPTIONS["nft"]()
    """The loss that is minimised."""
    rollout: RolloutOptions
    """How answers are sampled for training."""
    training: TrainingOptions
    """How the policy learns from them."""
    evaluation: EvaluationOptions
    """How the policy is evaluated."""
    run: RunOptions
    """How long, where to, and what is kept."""

    @model_validator(mode="after")
    def _check_combinations(self) -> Config:
        rollout, training, run = self.rollout, self.training, self.run
        objective = self.objective.entry
        if rollout.completions == 1 and objective.needs_group:
            raise ValueError(
                f"rollout.completions is 1, but the objective {objective.name} compares a question's answers; set it "
                "to 2 or more, or take objective rft"
            )
        weight = "uniform" if objective.is_user_loss else self.objective.options.get("prompt_weight", "uniform")
        if rollout.completions == 1 and weight != "uniform":  # every right answer's pass rate is 1, its weight then 0
            raise ValueError(
                f"rollout.completions is 1, but objective.prompt_weight is {weight}, which weighs a question by its "
                "pass rate; set completions to 2 or more, or prompt_weight to uniform"
            )
        if rollout.overlong_buffer is not None and not self.objective.reads_rewards:
            raise ValueError(
                f"rollout.overlong_buffer is {rollout.overlong_buffer}, but the objective {objective.name} learns from "
                "verdicts alone, so a reward by length would change nothing; leave it out, or take an objective with "
                "an advantage, such as dapo"
            )
        if rollout.filter == "none":
            _ = self.objective.teaching_rates  # raises for a user's loss that divides by a pass rate of 0
        if self.task.truncated_answers == "judged" and rollout.truncated_answers == "excluded":
            raise ValueError(
                "task.truncated_answers is judged, but rollout.truncated_answers is excluded, which leaves them out; "
                "set one of the two to wrong"
            )
        if rollout.temperature == 0:
            raise ValueError("rollout.temperature is 0, so all answers to a question are the same; set it above 0")
        if rollout.max_staleness and training.old_logprobs == "recomputed":
            raise ValueError(
                f"rollout.max_staleness is {rollout.max_staleness}, so answers come from several policies, but with "
                "training.old_logprobs recomputed π_old is the newest alone; set old_logprobs to recorded"
            )
        if training.old_logprobs is None:
            default = "recorded" if rollout.engine.name == "local" or rollout.max_staleness else "recomputed"
            training = training.model_copy(update={"old_logprobs": default})
        if training.importance_weight_cap is not None and training.old_logprobs == "recorded":
            raise ValueError(
                f"training.importance_weight_cap is {training.importance_weight_cap:g}, but with training.old_logprobs "
                "recorded π_old is the sampler's policy and every weight 1; set old_logprobs to recomputed"
            )
        if (rollout.top_p < 1 or rollout.top_k > 0) and training.old_logprobs == "recorded":
            raise ValueError(
                f"rollout.top_p is {rollout.top_p} and rollout.top_k is {rollout.top_k}, so the sampler's "
                "log-probabilities are not the policy's; set training.old_logprobs to recomputed, or the two to 1 and 0"
            )
        if training.optimizer_steps > rollout.questions:
            raise ValueError(
                f"training.optimizer_steps is {training.optimizer_steps}, more than rollout.questions, "
                f"{rollout.questions}; a step needs a question at least"
            )
        if training.warmup_rollouts > run.steps:
            raise ValueError(
                f"training.warmup_rollouts is {training.warmup_rollouts}, but run.steps, the run's rollouts, is "
                f"{run.steps}; set it lower"
            )
        if rollout.question_budget < rollout.questions:
            raise ValueError(
                f"rollout.max_sampled_questions is {rollout.max_sampled_questions}, below rollout.questions, "
                f"{rollout.questions}; set it at least that high"
            )
        if rollout.max_sequences < rollout.completions:
            raise ValueError(
                f"rollout.max_sequences is {rollout.max_sequences}, below rollout.completions, {rollout.completions}; "
                "a question's answers are decoded together, so set it at least that high"
            )
        for name, sampling in (("during", self.evaluation.during), ("final", self.evaluation.final)):
            if sampling is not None and sampling.temperature == 0 and sampling.completions > 1:
                raise ValueError(
                    f"evaluation.{name}.temperature is 0, so its {sampling.completions} completions would be the same; "
                    "set completions to 1 or temperature above 0"
                )
        object.__setattr__(self, "training", training)  # frozen, but nobody else has it yet
        return self

    def resolved(self) -> dict[str, Any]:
        """Every field with its value, as plain data."""
        return self.model_dump(mode="json")


def load_config(path: Path, overrides: Sequence[str] = (), default_folder: Path | None = None) -> Config:
    """The config of a YAML file, with `--dotted.field value` overrides applied. Raises ConfigError.

    run.folder is by default `default_folder`, or else runs/<name of the file>. A user's loss is looked for beside the
    file, then in the current folder.
    """
    data = read_config(path)
    for field, value in parse_overrides(overrides):
        set_field(data, field, value)
    return parse_config(data, default_folder or Path("runs") / path.stem, (path.parent, Path()))


WHOLE = ("task", "objective", "engine")
"""Sections that replace those of the base as a whole: options of one objective have no meaning for another."""


def read_config(path: Path, dependents: Sequence[Path] = ()) -> dict[str, Any]:
    """The plain data of a config's file, with the fields of its `base` that it doesn't change. Raises ConfigError.

    `dependents`: the files whose base this one is.
    """
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        role = f", the base of {dependents[-1]}," if dependents else ""
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"The config {path}{role} can't be read: {reason}.") from error
    except ValueError as error:
        raise ConfigError(f"The config {path} is not YAML: {error}.") from error
    if data is None:
        raise ConfigError(f"The config {path} is empty; begin with `model: …`.")
    if not isinstance(data, dict):
        raise ConfigError(f"The config {path} holds {type(data).__name__}, not fields; begin with `model: …`.")
    if "base" not in data:
        return data
    base = data.pop("base")
    if not isinstance(base, str):
        raise ConfigError(f"base is {base!r} in {path}; write another config's path from there, such as nft.yaml.")
    chain = [*dependents, path]
    if any((path.parent / base).resolve() == each.resolve() for each in chain):
        raise ConfigError(f"base is {base} in {path}, which leads back to itself; name a config that stands alone.")
    return _changed(read_config(path.parent / base, chain), data)


def _changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The base with its fields changed, section by section."""
    changed = dict(base)
    for name, value in changes.items():
        old = base.get(name)
        if name == "model":  # its short form is its name
            old, value = ({"name": one} if isinstance(one, str) else one for one in (old, value))
        if name not in WHOLE and isinstance(old, dict) and isinstance(value, dict):
            value = _changed(old, value)
        changed[name] = value
    return changed


def parse_config(
    data: dict[str, Any], default_folder: Path | None = None, folders: Sequence[Path] = (Path(),)
) -> Config:
    """The checked config of plain data; a user's loss is loaded from the first of the folders that has it.

    Raises ConfigError for the first error.
    """
    if default_folder is not None and isinstance(data.get("run"), dict) and data["run"].get("folder") is None:
        data = data | {"run": data["run"] | {"folder": str(default_folder)}}
    objective = written_out(data.get("objective"))
    root = Config
    try:
        if isinstance(objective, dict) and "loss" in objective:
            data = data | {"objective": objective}
            root = _with_objective(user_loss_options(objective["loss"], folders))
    except ValueError as error:
        raise ConfigError(f"objective: {error}.") from error
    try:
        return validated(root, data, "add it to the config or give --{field} VALUE")
    except ValueError as error:
        raise ConfigError(str(error)) from error


@cache
def _with_objective(options: Any) -> type[Config]:
    """A `Config` whose objective has these options."""
    return create_model(
        "Config", __base__=Config, objective=(options, Field(description="The loss that is minimised."))
    )


def parse_overrides(arguments: Sequence[str]) -> list[tuple[list[str], Any]]:
    """`--a.b value` and `--a.b=value` → ([a, b], the value read as YAML).

    ConfigError for an override that would undo an earlier one.
    """
    overrides: list[tuple[list[str], Any]] = []
    given: dict[tuple[str, ...], str] = {}
    waiting = list(arguments)
    while waiting:
        name = waiting.pop(0)
        if not name.startswith("--") or len(name) == 2:
            raise ConfigError(f"{name!r} is not an override; write --field.name value, such as --run.seed 1.")
        name, assigned, text = name.partition("=")
        if not assigned:
            if not waiting:
                raise ConfigError(f"{name} has no value; write {name} value.")
            text = waiting.pop(0)
        try:
            value = plain_value(text)
        except ValueError as error:
            raise ConfigError(f"The value of {name}, {text!r}, can't be read; put quotes around it.") from error
        field = whole_field(name[2:].replace("-", "_").split("."), value)
        for earlier, words in given.items():
            if list(earlier) == field:
                raise ConfigError(f"{words} and {name} {text} set the same field; give it once.")
            if list(earlier[: len(field)]) == field:
                raise ConfigError(f"{name} {text} would undo {words} before it; give it first.")
        given[tuple(field)] = f"{name} {text}"
        overrides.append((field, value))
    return overrides


def plain_value(text: str) -> Any:
    """A text read as YAML, but 1e-5 is a number. ValueError if it isn't YAML."""
    value = read_yaml(text)
    if isinstance(value, str):  # for YAML 1e-5 is a text
        with suppress(ValueError):
            return float(value)
    return value


def whole_field(field: list[str], value: Any) -> list[str]:
    """The field that an override of `field` replaces."""
    if field in (["objective", "name"], ["objective", "loss"], ["rollout", "engine", "name"]):
        return field[:-1]  # options of one objective, or engine, have no meaning for another
    if field == ["model"] and isinstance(value, str):
        return ["model", "name"]  # another model keeps the options
    return field


def set_field(data: dict[str, Any], field: list[str], value: Any) -> None:
    """Sets a field of plain data; short forms that contain it, such as `objective: nft`, are written out first.

    Raises ConfigError.
    """
    for depth, part in enumerate(field[:-1]):
        inner = data.get(part)
        if inner is None:
            inner = data[part] = {}
        elif isinstance(inner, str) and part == "task":
            try:
                inner = data[part] = task_fields(inner)
            except ValueError as error:
                raise ConfigError(f"{'.'.join(field[: depth + 1])}: {error}.") from error
        elif isinstance(inner, str) and part in ("model", "objective", "engine"):
            inner = data[part] = written_out(inner) if part == "objective" else {"name": inner}
        elif not isinstance(inner, dict):
            place = ".".join(field[: depth + 1])
            raise ConfigError(f"{place} is {inner!r} and has no field {field[depth + 1]!r}; write it out as a mapping.")
        data = inner
    data[field[-1]] = value
