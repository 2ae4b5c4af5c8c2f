"""One update of verl's own actor worker on a CPU, started by test_verl.py: a rank of it. `verl_update.py FOLDER`.

FOLDER holds a model and batch.pt. verl composes configs/verl/nft_7b.yaml, imports what it names and computes the
advantages, and its worker trains on this rank's share; the weights after it and its metrics go to FOLDER/update.pt.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
import verl_on_cpu  # noqa: F401
from hydra import compose, initialize_config_dir
from verl import DataProto
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY, get_policy_loss_fn
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.utils import tensordict_utils as tu
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine_workers import ActorRolloutRefWorker

CONFIGS = Path(__file__).parents[2] / "configs" / "verl"
EngineRegistry.register(model_type="language_model", backend=["fsdp2"], device=["cpu"])(FSDPEngineWithLMHead)


def jagged(rows):
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def responses(padded, lengths):
    return jagged([row[:length] for row, length in zip(padded, lengths, strict=True)])


def main(folder):
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    batch = torch.load(folder / "batch.pt")
    assert not {"nft"} & {*POLICY_LOSS_REGISTRY, *ADV_ESTIMATOR_REGISTRY}  # what is found later, verl found
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("nft_7b", overrides=batch["overrides"])
    torch.distributed.init_process_group("gloo")
    worker = ActorRolloutRefWorker(config.actor_rollout_ref, role="actor")
    worker.init_model()

    prompts, answers = batch["prompts"], batch["answers"]
    lengths = [len(answer) for answer in answers]
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(length) for length in lengths], batch_first=True)
    data = DataProto.from_single_dict(
        {"token_level_rewards": batch["rewards"], "response_mask": mask, "uid": np.array(batch["uid"], dtype=object)}
    )
    data = compute_advantage(data, config.algorithm.adv_estimator, config=config.algorithm)

    fields = {
        "prompts": jagged(prompts),
        "responses": jagged(answers),
        "input_ids": jagged([torch.cat(pair) for pair in zip(prompts, answers, strict=True)]),
        "position_ids": jagged([torch.arange(len(p) + len(a)) for p, a in zip(prompts, answers, strict=True)]),
        "response_mask": responses(mask, lengths),
        "loss_mask": responses(mask, lengths),
        "old_log_probs": responses(batch["old_logprobs"], lengths),
        "advantages": responses(data.batch["advantages"], lengths),
        "rollout_is_weights": responses(batch["rollout_is_weights"], lengths),
    }
    share = slice(rank * len(answers) // world, (rank + 1) * len(answers) // world)
    fields = {name: jagged(list(field.unbind())[share]) for name, field in fields.items()}
    settings = {
        "global_batch_size": len(answers),
        "mini_batch_size": len(answers),
        "epochs": 1,
        "seed": 0,
        "dataloader_kwargs": {"shuffle": False},
        "temperature": 1.0,
        "calculate_entropy": False,
    }
    metrics = tu.get(worker.update_actor(tu.get_tensordict(fields, settings)), "metrics")
    weights = {name: tensor.full_tensor() for name, tensor in worker.actor.engine.module.state_dict().items()}
    if rank == 0:
        found = get_policy_loss_fn(config.actor_rollout_ref.actor.policy_loss.loss_mode).__module__
        values = {name: float(value[0]) for name, value in metrics.items() if name.startswith("actor/")}
        torch.save({"found": found, "metrics": values, "weights": weights}, folder / "update.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
