"""The network and its weights.

- `checkpoint`: a folder's config and tensors; `loader`: the network from such a folder
- `network`: what the network is asked for; `position_tables`: its tables by view size
- `prompts`: a prompt to token ids
- `weight_matrix`: a matrix in 16, 32 or 8 bits; `int8_layers`, `experts`: the modules made of them
- `adapters`: LoRA adapters merged into the network
- `footprint`: the memory that a network and its pages take
"""
