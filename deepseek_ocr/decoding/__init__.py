"""From logits to text, a token at a time."""
