"""Logits into text: the sampler, its guards, and the decoder's plain form."""
