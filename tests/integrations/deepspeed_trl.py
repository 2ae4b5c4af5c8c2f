"""What each process runs that `test_trl_deepspeed.py` starts: `python … FOLDER STAGE`, ZeRO's; 0 is no DeepSpeed."""

import json
import sys
from pathlib import Path
from typing import Any

from tiny_trl import begins_with_two, make

from negaware.integrations.trl import NFTConfig, NFTTrainer

folder, stage = Path(sys.argv[1]), int(sys.argv[2])
changes: dict[str, Any] = {"max_steps": 3, "num_iterations": 2, "learning_rate": 1.0, "lr_scheduler_type": "constant"}
changes |= {"optim": "sgd"}  # AdamW makes of a gradient that is 0 but for rounding a step as long as any other
if stage:
    import deepspeed

    # Sums in shared memory, for inference alone: it would compile them for a minute and a half when it starts.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
    changes["deepspeed"] = dict.fromkeys(sizes, "auto") | {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's own, as without DeepSpeed
    }
trainer = make(NFTTrainer, NFTConfig, folder, begins_with_two, **changes)
trainer.train()
trainer.save_model(str(folder / str(stage)))
if trainer.accelerator.is_main_process:
    (folder / f"log-{stage}.json").write_text(json.dumps(trainer.state.log_history))
trainer.accelerator.wait_for_everyone()  # who leaves while another is at work may bring it down
trainer.accelerator.end_training()
