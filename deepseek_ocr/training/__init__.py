"""Data, training, synthetic pages and evaluation. See `training/README.md`."""
