"""Fine-tune a checkpoint: LoRA or every weight, with checkpoints, validation and resumption."""
