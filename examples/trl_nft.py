"""NFT in TRL. Compared with a GRPOTrainer script two names change, and rewards are verdicts: 1 right, 0 wrong.

    python examples/trl_nft.py --output_dir runs/trl --max_steps 20          # with GPUs: accelerate launch
    python examples/trl_nft.py --output_dir runs/trl --max_steps 20 --use_cpu --bf16 False        # on a CPU

It takes all options of TRL (`--use_vllm`, `--learning_rate 1e-6`, `--config FILE.yaml` …) and of NFT.
"""

import re

from datasets import Dataset
from trl import TrlParser

from negaware.integrations.trl import NFTConfig, NFTTrainer  # was: from trl import GRPOConfig, GRPOTrainer
from negaware.models.embedded import embedded_model_folder  # a name or folder works too; this model needs no hub

PROBLEMS = [(a, b) for a in range(2, 10) for b in range(2, 10)]


def is_right(completions, sum, **others):
    """1 if the answer's last number is the sum, otherwise 0; `sum` is a column of the data set."""
    numbers = [re.findall(r"\d+", completion[0]["content"]) for completion in completions]
    return [float(bool(found) and int(found[-1]) == gold) for found, gold in zip(numbers, sum, strict=True)]


def main() -> None:
    """Parses the command line with TRL's parser and trains."""
    (config,) = TrlParser(NFTConfig).parse_args_and_config()
    rows = [{"prompt": [{"role": "user", "content": f"What is {a} + {b}?"}], "sum": a + b} for a, b in PROBLEMS]
    trainer = NFTTrainer(
        model=str(embedded_model_folder()),
        reward_funcs=is_right,
        args=config,
        train_dataset=Dataset.from_list(rows),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
