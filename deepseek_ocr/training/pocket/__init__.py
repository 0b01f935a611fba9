"""Train a model like the bundled one from nothing."""
