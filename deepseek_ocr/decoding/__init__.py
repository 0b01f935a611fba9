"""From logits to text, a token at a time.

- `decoder`: what every decoder does, and the plain one that faster ones must equal
- `sampler`: the next token of every page
- `ngram_guard`: the guard that forbids sequences of tokens to repeat
- `loop_detector`: the guard that ends a page whose text goes in circles
- `detokenizer`: token ids to text
"""
