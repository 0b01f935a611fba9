"""The network and its weights: from a checkpoint folder and a prompt to tensors."""
