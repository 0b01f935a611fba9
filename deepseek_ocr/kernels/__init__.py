"""Fast paths, each beside the plain one that it must equal.

- `choice`: the names of the fast paths, switched on and off; imports no torch
- `rehearsal`: puts the chosen ones into a network, and tries them there against the plain class
- `op_fallbacks`, `convolutions`: stand-ins for operators that a device lacks
- `float32_fallback`: a page read in float32 if float16 overflows

Decoding:

- `decoder_factory`: decoders of a network, by the fastest path that works
- `slot_decoder`: the fast decoder, and its paths: `compiled_steps` (with `decode.cpp`),
  `torch_steps`, `cuda_graphs`
- `slot_cache`, `decoder_weights`: keys and values of several pages; the weights under plain names

Encoders:

- `vision`: the fast path of the encoders
- `sam_attention`, `compiled_attention` (with `sam_attention.cpp`): their attention

`compiling` compiles the C++ files on the machine they run on.
"""
