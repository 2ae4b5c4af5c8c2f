"""NFT in TRL: `NFTTrainer` is TRL's GRPOTrainer with NFT's loss, and with batches refilled with informative groups.

All else is TRL's: generation (vLLM too), rewards, PEFT, DeepSpeed, accelerate, logging, checkpoints. A completion's
reward is its verdict: 1 right, 0 wrong, None unknown.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from math import ceil, isnan, nan
from typing import TYPE_CHECKING, Any

from negaware.libraries import require_installed

require_installed("trl>=1.16,<1.17", __name__)

import torch  # noqa: E402
from accelerate.logging import get_logger  # noqa: E402
from datasets import IterableDataset  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from negaware.objectives import OBJECTIVES, Answers  # noqa: E402
from negaware.objectives.contract import try_out  # noqa: E402

logger = get_logger(__name__)

Batch = dict[str, Any]
"""TRL's: tensors by name, one row for each answer; a group's answers are adjacent until TRL shuffles them."""

GRPO_ONLY = {
    *("loss_type", "importance_sampling_level", "epsilon", "epsilon_high", "delta", "scale_rewards"),
    *("multi_objective_aggregation", "top_entropy_quantile", "off_policy_mask_threshold"),
    *("sapo_temperature_neg", "sapo_temperature_pos"),
    *("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
}
"""Options that only affect GRPO's loss. Their defaults mean an average over all tokens of a batch, as in NFT's loss."""

PADDED_LEFT = ("prompt_ids", "prompt_mask")
PADDED_RIGHT = (
    *("completion_ids", "completion_mask", "tool_mask"),
    *("old_per_token_logps", "sampling_per_token_logps", "ref_per_token_logps", "importance_sampling_ratio"),
)
ONE_PER_ANSWER = ("advantages", "correct", "pass_rate")

OBJECTIVE = OBJECTIVES["nft"]
OPTIONS = {
    name: "implicit_floor" if name == "epsilon" else name  # GRPOConfig has another epsilon
    for name in OBJECTIVE.keywords
    if name != "ratio"  # the ratio of a whole answer would need another average than TRL's
}
"""NFT's name of each option → its name in `NFTConfig`."""

if TYPE_CHECKING:
    _WithOptions = GRPOConfig
else:
    _WithOptions = make_dataclass(
        "_WithOptions",
        [
            (name, keyword.type, field(default=keyword.default, metadata={"help": keyword.option.help}))
            for keyword, name in zip((OBJECTIVE.keywords[option] for option in OPTIONS), OPTIONS.values(), strict=True)
        ],
        bases=(GRPOConfig,),
        namespace={"__module__": __name__},
    )


@dataclass
class NFTConfig(_WithOptions):
    """TRL's GRPOConfig with NFT's options (arXiv 2505.18116): implicit_floor (ε), prompt_weight and the rest.

    ValueError for options of GRPO's loss, for what NFT's loss refuses, and for a batch that can't be refilled.
    """

    max_refills: int = field(
        default=8,
        metadata={
            "help": "How often more questions are asked, at most a batch of them each time, until the batch is full of "
            "groups with right and wrong answers. 0: never; other groups are then left out of the loss."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in fields(GRPOConfig):
            value = getattr(self, option.name)
            if option.name in GRPO_ONLY and value != option.default:
                raise ValueError(
                    f"{option.name} is {value!r}, but it affects GRPO's loss only, not NFT's; leave it out "
                    f"(NFT's options are {', '.join(OPTIONS.values())}; its loss is a mean over the tokens of the "
                    "whole batch)."
                )
        for name in (*OPTIONS.values(), "max_refills"):
            value = getattr(self, name)
            if not isinstance(value, str) and value < 0:
                raise ValueError(f"{name} is {value}; it may not be below 0.")
        try_out(OBJECTIVE, self.nft_options)
        assert self.steps_per_generation is not None  # TRL has set both
        assert self.num_generations is not None
        rows = self.per_device_train_batch_size * self.steps_per_generation
        if self.max_refills and rows % self.num_generations:
            raise ValueError(
                f"A process generates {rows} answers at a time (per_device_train_batch_size × steps_per_generation), "
                f"which is no multiple of num_generations ({self.num_generations}), so groups would lie across "
                "processes and can't be refilled; change one of the three, or set max_refills to 0."
            )

    @property
    def nft_options(self) -> dict[str, Any]:
        """The options by NFT's names."""
        return {option: getattr(self, name) for option, name in OPTIONS.items()}


class NFTTrainer(GRPOTrainer):
    """TRL's GRPOTrainer that learns by NFT. `args` is an NFTConfig; all other arguments are GRPOTrainer's.

    ValueError if rewards (their sum with `reward_weights`) aren't 0 or 1, or if the training data can't refill batches.
    """

    args: NFTConfig
    model: Any  # in TRL these may be None; here they aren't
    train_dataset: Any
    num_generations: Any
    _tag_names = ["trl", "nft", "negaware"]  # noqa: RUF012  (as in TRL)
    _name = "NFT"
    _paper = {  # noqa: RUF012
        "title": "NFT: Bridging Supervised Learning and Reinforcement Learning in Math Reasoning",
        "id": "2505.18116",
        "citation": "@article{chen2025nft,\n"
        "    title  = {{NFT: Bridging Supervised Learning and Reinforcement Learning in Math Reasoning}},\n"
        "    author = {Huayu Chen and Kaiwen Zheng and Qinsheng Zhang and Ganqu Cui and Lifan Yuan and Yin Cui and "
        "Haotian Ye and Tsung-Yi Lin and Ming-Yu Liu and Jun Zhu and Haoxiang Wang},\n"
        "    year   = 2025,\n"
        "    eprint = {arXiv:2505.18116},\n"
        "}",
    }

    def __init__(self, model: Any, reward_funcs: Any = None, args: NFTConfig | None = None, *rest: Any, **more: Any):
        args = NFTConfig() if args is None else args
        if not isinstance(args, NFTConfig):
            raise ValueError(f"NFTTrainer takes an NFTConfig as args, not a {type(args).__name__}.")
        super().__init__(model, reward_funcs, args, *rest, **more)
        if args.max_refills and isinstance(self.train_dataset, IterableDataset):
            raise ValueError("A streamed train_dataset can't be refilled from; set max_refills to 0.")
        self._rewards = torch.empty(0)
        self._logprobs: Tensor | None = None

    # --- the batch ---

    def _generate_and_score_completions(self, inputs: list[Batch]) -> Batch:
        logged = {name: len(values) for name, values in self._metrics["train"].items()}
        batch = self._sample(inputs)
        if self.model.training and self.args.max_refills:
            batch = self._refilled(batch, logged)
        num_tokens = self.accelerator.gather(_learnt(batch).sum()).sum()
        return batch | {"num_items_in_batch": num_tokens}

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards = super()._calculate_rewards(*args, **kwargs)  # [answers of all processes, functions]
        return self._rewards

    def _sample(self, inputs: list[Batch]) -> Batch:
        """TRL's generation and rewards, with `correct` and `pass_rate`; answers that teach nothing are masked.

        They are: answers without a verdict (or cut off, under `mask_truncated_completions`), which don't count in the
        pass rate either; and groups whose answers are all right or all wrong.
        """
        batch: Batch = super()._generate_and_score_completions(inputs)
        weights = self.reward_weights.to(self._rewards.device)
        start = self.accelerator.process_index * len(inputs)
        verdicts = _verdicts(self._rewards, weights)[start : start + len(inputs)]
        verdicts[batch["completion_mask"].sum(1) == 0] = torch.nan
        size = self.num_generations if self.model.training else self.num_generations_eval
        rates = self.accelerator.gather(verdicts).view(-1, size).nanmean(1).nan_to_num(0.0)
        rates = rates.repeat_interleave(size)[start : start + len(inputs)]
        teaches = ~verdicts.isnan() & (rates > 0) & (rates < 1)
        changes = {"completion_mask": batch["completion_mask"] * teaches[:, None]}
        if "old_per_token_logps" in batch:  # TRL's log π_θ is 0 where the mask is 0: the ratio could be infinite
            changes["old_per_token_logps"] = batch["old_per_token_logps"].masked_fill(~teaches[:, None], 0.0)
        return batch | changes | {"correct": verdicts == 1, "pass_rate": rates}

    def _refilled(self, batch: Batch, logged: dict[str, int]) -> Batch:
        """The batch with informative groups instead of the others; all processes ask equally often and equally much.

        `logged`: how many entries each of TRL's metrics had before the batch.
        """
        groups = self._groups(batch)
        size, calls = len(groups), [len(groups)]
        kept = [group for group in groups if _is_informative(group)]
        examples = self._examples()
        for _ in range(self.args.max_refills):
            missing = max(size - len(kept), 0)
            number = int(self._gathered(min(size, ceil(missing * sum(calls) / max(len(kept), 1)))).max())
            if not number:
                break
            kept += filter(_is_informative, self._groups(self._sample(self._local_examples(examples, number))))
            calls.append(number)
        self._join_metrics(logged, calls)
        found, filled = self._gathered(len(kept)).sum(), self._gathered(min(len(kept), size)).sum()
        wanted, asked = (number * self.accelerator.num_processes for number in (size, sum(calls)))
        self._metrics["train"]["refill/questions_asked"].append(float(asked))
        self._metrics["train"]["refill/informative_share"].append(int(found) / asked)
        if filled < wanted:
            logger.warning(
                f"{int(filled)} of this batch's {wanted} questions have right and wrong answers, after {asked} "
                "were asked (max_refills); the others are left out. Easier or harder questions help, or more "
                "num_generations."
            )
        kept += [group for group in groups if not _is_informative(group)]
        return self._merged(kept[:size])

    def _join_metrics(self, logged: dict[str, int], calls: Sequence[int]) -> None:
        """Joins each metric's entries of several calls into one for the batch, weighted by the calls' questions."""
        for name, values in self._metrics["train"].items():
            new = values[logged.get(name, 0) :]
            if len(new) == len(calls):
                values[logged.get(name, 0) :] = [_joined(name, new, calls)]

    def _groups(self, batch: Batch) -> list[Batch]:
        """The batch, split into groups."""
        rows = {name: value for name, value in batch.items() if name != "num_items_in_batch"}
        unknown = rows.keys() - {*PADDED_LEFT, *PADDED_RIGHT, *ONE_PER_ANSWER}
        if unknown:
            raise ValueError(f"Batches with {', '.join(sorted(unknown))} can't be refilled; set max_refills to 0.")
        split = [value.split(self.num_generations) for value in rows.values()]
        return [dict(zip(rows, parts, strict=True)) for parts in zip(*split, strict=True)]

    def _merged(self, groups: Sequence[Batch]) -> Batch:
        """Groups of several calls as one batch, padded to the longest."""
        merged: Batch = {}
        for name in groups[0]:
            parts = [group[name] for group in groups]
            if name not in ONE_PER_ANSWER:
                padding = self._tokenizer.pad_token_id if name.endswith("_ids") else int(name == "tool_mask")
                width = max(part.shape[1] for part in parts)
                sides = [(width - part.shape[1], 0) for part in parts]
                if name not in PADDED_LEFT:
                    sides = [(0, room) for room, _ in sides]
                parts = [functional.pad(part, side, value=padding) for part, side in zip(parts, sides, strict=True)]
            merged[name] = torch.cat(parts)
        return merged

    def _gathered(self, number: int) -> Tensor:
        """Every process's number."""
        numbers: Tensor = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))
        return numbers

    def _examples(self) -> Iterator[Batch]:
        """The training set repeatedly, in random orders that depend only on the step: a resumed run draws the same."""
        place = self._step % self.args.gradient_accumulation_steps
        order = list(range(len(self.train_dataset)))
        generator = random.Random(f"{self.args.seed}:{self.state.global_step}:{place}")
        while True:
            generator.shuffle(order)
            yield from (self.train_dataset[index] for index in order)

    def _local_examples(self, examples: Iterator[Batch], number: int) -> list[Batch]:
        """This process's next `number` examples, each once for every answer; all processes read the same iterator."""
        drawn = [next(examples) for _ in range(number * self.accelerator.num_processes)]
        start = number * self.accelerator.process_index
        return [dict(example) for example in drawn[start : start + number] for _ in range(self.num_generations)]

    # --- the loss ---

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._logprobs = result[0]
        return result

    def _compute_loss(self, model: Any, inputs: Batch) -> Tensor:
        """NFT's loss averaged over the tokens of the whole batch, plus TRL's other terms (KL, entropy …).

        Those are GRPO's loss with advantages of 0; its forward pass also gives the log-probabilities.
        """
        others: Tensor = super()._compute_loss(model, inputs | {"advantages": torch.zeros_like(inputs["advantages"])})
        logprobs, self._logprobs = self._logprobs, None
        assert logprobs is not None
        old = inputs.get("old_per_token_logps")
        old = logprobs.detach() if old is None else old
        mask = _learnt(inputs)
        answers = Answers(logprobs, old, mask, inputs["correct"], inputs["pass_rate"])
        terms = OBJECTIVE.terms(answers, **self.args.nft_options)
        loss = terms.per_token
        if "importance_sampling_ratio" in inputs:  # π_old over vLLM's policy, which sampled the answers
            loss = loss * inputs["importance_sampling_ratio"]
        divisor = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if self.model.training:  # a batch is used for several steps, and a step accumulates several micro-batches
            divisor = divisor * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        with torch.no_grad():
            self._log_fractions(terms.counts, mask.sum())
        return others + loss.sum() / divisor

    def _log_fractions(self, counts: Mapping[str, Tensor], num_tokens: Tensor) -> None:
        """Logs the fraction of tokens that each safeguard of the loss changes, instead of GRPO's clip ratios."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name in [name for name in metrics if name.startswith("clip_ratio/")]:
            del metrics[name]
        totals = self.accelerator.reduce(torch.stack([num_tokens, *counts.values()]).float(), reduction="sum")
        for name, count in zip(counts, totals[1:], strict=True):
            metrics[f"nft/share_{name}"].append((count / totals[0].clamp(min=1)).item())


def _verdicts(rewards: Tensor, weights: Tensor) -> Tensor:
    """1, 0 or NaN (unknown) for each row of rewards [B, functions]. ValueError for another sum."""
    # Functions of weight 0 are only logged; they don't make a verdict.
    verdicts = torch.where(weights != 0, rewards * weights, torch.nan).nansum(1)
    verdicts[(rewards.isnan() | (weights == 0)).all(1)] = torch.nan
    odd = verdicts[(verdicts != 0) & (verdicts != 1) & ~verdicts.isnan()]
    if len(odd):
        raise ValueError(
            f"A completion's rewards add up to {float(odd[0])}, but NFT needs verdicts: let the reward functions "
            "give 1 for a right answer, 0 for a wrong one, and set reward_weights to 0 for those only to be watched."
        )
    return verdicts


def _joined(name: str, values: Sequence[float], weights: Sequence[int]) -> float:
    """A metric's values of several calls as one. NaN, the mean of no verdicts, is left out."""
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if not isnan(value)]
    if not known:
        return nan
    area, _, kind = name.rpartition("/")
    if area.startswith(("completions", "sampling")) and kind.startswith(("min", "max")):
        # TRL logs 0 for terminated answers if there are none.
        present = [value for value, _ in known if value or "terminated" not in kind] or [0.0]
        return min(present) if kind.startswith("min") else max(present)
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known)


def _learnt(batch: Batch) -> Tensor:
    """The mask of the tokens that are learnt from: the model's, not a tool's."""
    mask: Tensor = batch["completion_mask"] * batch.get("tool_mask", 1)
    return mask


def _is_informative(group: Batch) -> bool:
    return bool(0 < group["pass_rate"][0] < 1)
