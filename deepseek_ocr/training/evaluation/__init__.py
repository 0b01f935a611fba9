"""Measure how well a model, or another program, reads pages whose text is known."""
