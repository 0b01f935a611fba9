"""Named checkpoints: fetched, kept whole, found. Imports no torch, executes nothing.

registry.py     the checkpoints known by name; ensure, verify, adopt
places.py       where downloads are kept, and where the bundled checkpoint lies
fetch.py        one checkpoint from the first source that gives it, built beside its final name
origins.py      where the files are and what the hub says about them (sizes, SHA-256)
transfer.py     the bytes themselves, by pget or by huggingface_hub
growth.py       how far a download is
tar_archive.py  JSON and safetensors out of a tar that nobody vouches for
folders.py      is this folder complete? its record of sizes and sums
"""
