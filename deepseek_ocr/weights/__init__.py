"""Named checkpoints: fetched, kept whole, found. Imports no torch, executes nothing."""
