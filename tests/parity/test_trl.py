"""The policy-gradient loss against TRL's GRPOTrainer on the same tensors, real classes at tiny config."""

import pytest
import tiny_vlm
import torch
import transformers as tf
from torch import Tensor

from promptloop.objectives.policy_gradient import Surrogate, group_advantages, policy_gradient

LONGEST = 6


def trainer(tmp_path, loss_type: str, kl_weight: float):
    """A real GRPOTrainer around a tiny Llama."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    torch.manual_seed(0)
    words = tiny_vlm.tokenizer()
    network = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(words), **tiny_vlm.WIDTH))
    arguments = GRPOConfig(
        output_dir=str(tmp_path), loss_type=loss_type, beta=0.0, epsilon=0.2, epsilon_high=0.3,
        max_completion_length=LONGEST, num_generations=2, per_device_train_batch_size=4, report_to=[],
        use_cpu=True, bf16=False, use_bias_correction_kl=False,
    )  # fmt: skip
    made = GRPOTrainer(
        model=network,
        reward_funcs=lambda completions, **rest: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["a"]}),
        processing_class=words,
    )
    made.beta = kl_weight  # set afterwards: the trainer would look for a reference model on the hub
    made.model.eval()  # gradient accumulation plays no part then
    return made


def batch(seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([6, 1, 3, 4])
    advantages, _ = group_advantages(torch.rand(4, generator=rng), 2)
    return {
        "prompt_ids": torch.randint(5, 200, (4, 3), generator=rng),
        "prompt_mask": torch.ones(4, 3, dtype=torch.long),
        "completion_ids": torch.randint(5, 200, (4, LONGEST), generator=rng),
        "completion_mask": (torch.arange(LONGEST) < lengths[:, None]).long(),
        "advantages": advantages,
        "num_items_in_batch": lengths.sum(),
    }


@pytest.mark.parametrize("kl_weight", [0.0, 0.1])
@pytest.mark.parametrize(
    ("per", "loss_type"), [("token", "dapo"), ("token", "bnpo"), ("draft", "grpo"), ("constant", "dr_grpo")]
)
def test_the_loss_is_trls(tmp_path, per: str, loss_type: str, kl_weight: float) -> None:
    """Value and gradient. Fails when a normaliser, a side of the clip or the sign of KL differs."""
    theirs = trainer(tmp_path, loss_type, kl_weight)
    inputs = batch()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    seen = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    log_probs = theirs._get_per_token_logps_and_entropies(theirs.model, ids, seen, LONGEST)[0]
    rng = torch.Generator().manual_seed(1)
    old, reference = (log_probs.detach() + 0.3 * torch.randn(4, LONGEST, generator=rng) for _ in range(2))
    inputs |= {"old_per_token_logps": old, "ref_per_token_logps": reference}
    wanted = theirs._compute_loss(theirs.model, inputs)
    settings = Surrogate(0.2, 0.3, kl_weight, per, LONGEST)  # type: ignore[arg-type]
    ours, _ = policy_gradient(
        log_probs,
        inputs["advantages"],
        inputs["completion_mask"].bool(),
        settings,
        old=old,
        reference=reference,
    )
    assert torch.allclose(ours, wanted, atol=1e-6)
    weights = [p for p in theirs.model.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(wanted, weights), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
