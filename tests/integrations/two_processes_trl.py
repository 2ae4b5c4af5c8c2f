"""What each of the processes that torchrun starts for `test_trl_processes.py` runs: `python … FOLDER`."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_trl import Step, begins_with_two, nft, steps_of

RANK = int(os.environ["RANK"])


def verdicts(completions: list[Any], **others: Any) -> list[float | None]:
    """Only the second process has answers that differ at once; the first must ask again and again."""
    calls.append(len(completions))
    if RANK == 1:
        return [float(index % 2) for index in range(len(completions))]
    return begins_with_two(completions)


calls: list[int] = []
folder = Path(sys.argv[1])
trainer = nft(folder, verdicts, max_steps=2, num_iterations=2, learning_rate=1e-2)
steps: list[Step] = steps_of(trainer)
torch.save(
    {
        "calls": calls,
        "batches": [dict(batch) for batch in trainer.batches],
        "losses": trainer.losses,
        "steps": [(step.weights, step.gradients) for step in steps],
        "logs": trainer.state.log_history,
    },
    folder / f"{RANK}.pt",
)
trainer.accelerator.wait_for_everyone()  # who leaves while another is at work may bring it down
trainer.accelerator.end_training()
