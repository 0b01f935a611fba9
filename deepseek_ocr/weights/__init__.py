"""How checkpoints are fetched and kept whole. Imports no torch, executes nothing.

order.py      one checkpoint from the first source that gives it, built beside its final name
sources.py    where the files are and what the hub says about them (sizes, SHA-256)
transfer.py   the bytes themselves, by pget or by huggingface_hub
archive.py    JSON and safetensors out of a tar that nobody vouches for
folders.py    is this folder complete? its record of sizes and sums
console.py    what a person or a log sees meanwhile
"""
