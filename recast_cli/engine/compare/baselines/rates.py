"""Learning rates at which sweeps of the baselines start, known without torch."""

LEARNING_RATES: dict[str, float] = {
    # Where a sweep may start: AdamW without weight decay, batches of 32, about 250 steps. Published rates are for runs
    # of thousands of steps. All were tried at a fifth and five times on ViT-Tiny (one seed, about 100 steps, training
    # loss): of the first five none was better, the others hardly differ within a factor of five.
    "bias": 2e-3,  # judgement: between full fine-tuning and LoRA
    "norm": 2e-3,  # judgement: as for biases, the same kind of parameter
    "full": 1e-4,  # judgement: usual for vision transformers under AdamW
    "lora": 5e-3,  # PEFT's example of image classification with LoRA
    "dora": 5e-3,  # judgement: as LoRA, whose update it contains
    "lora-xs": 1e-2,  # A carries the singular values, so this moves W by 1 % of the largest a step
    "tinylora": 5e-3,  # LoRA-XS, but a float moves all of R at once
    "unilora": 5e-2,  # 48 floats of size 1 make updates of norm 1, and they start within 0.02
    "fourierft": 1e-1,  # with scaling 300 a float of 1 is a matrix of norm 0.6 (576 x 192)
    "waveft": 5e-3,  # with scaling 25 a float of 1 is a matrix of norm 25
    "shared-lora": 2e-2,  # above LoRA's, as most entries are pruned
}
"""Learning rate at which a sweep of each method starts."""
