"""The network: a checkpoint folder into weights, prompts and views into embeddings."""
