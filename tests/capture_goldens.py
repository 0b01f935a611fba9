"""Capture goldens from the real checkpoint with the official code. NOT RUN by this project's tests.

It needs the 6.7 GB checkpoint with its Python files, a GPU, and an environment of its own:

    python3.12 -m venv .capture && .capture/bin/pip install -r tests/capture_requirements.txt
    .capture/bin/python tests/capture_goldens.py CHECKPOINT IMAGES OUTPUT

This is the one place that runs the checkpoint's own Python (`trust_remote_code`); read that code
first. Nothing else in the project imports this file. For every image and preset it writes to
OUTPUT what `tests/golden/preprocess.json` holds, and the ids that greedy decoding gave:

- `preprocess.json`: crop grid, counts, first and last ids, statistics and probes of every view
- `greedy.safetensors`: `<image>.<preset>.ids`, at most 512 tokens, whole-sequence n-gram guard 20
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

PROMPT = "<image>\n<|grounding|>Convert the document to markdown."

PRESETS = {
    "Tiny": (512, 512, False),
    "Small": (640, 640, False),
    "Base": (1024, 1024, False),
    "Large": (1280, 1280, False),
    "Gundam": (1024, 640, True),
}

LONGEST = 512


class Captured(Exception):  # noqa: N818 - not an error
    """Carries the arguments of `generate` out of the official `infer`."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("output", type=Path)
    flags = parser.parse_args()

    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(flags.checkpoint, trust_remote_code=True)
    model = AutoModel.from_pretrained(
        flags.checkpoint, trust_remote_code=True, use_safetensors=True, torch_dtype=torch.bfloat16
    )
    model = model.eval().cuda()
    flags.output.mkdir(parents=True, exist_ok=True)
    cases: list[dict[str, Any]] = []
    ids: dict[str, torch.Tensor] = {}
    for path in sorted(flags.images.iterdir()):
        for preset, sizes in PRESETS.items():
            inputs = capture_inputs(model, tokenizer, path, sizes, flags.output)
            cases.append(describe(path.name, preset, inputs))
            ids[f"{path.stem}.{preset}.ids"] = greedy(model, inputs)
            print(path.name, preset, cases[-1]["vision_tokens"], flush=True)
    document = {"note": "official preprocessing", "image_token_id": 128815, "cases": cases}
    (flags.output / "preprocess.json").write_text(json.dumps(document))
    save_file(ids, flags.output / "greedy.safetensors")


def capture_inputs(
    model: Any, tokenizer: Any, path: Path, sizes: tuple[int, int, bool], scratch: Path
) -> dict[str, Any]:
    """What the official `infer` hands to `generate` for one page."""
    base_size, image_size, crop_mode = sizes
    original = model.generate

    def stop(input_ids: Any, **options: Any) -> None:
        raise Captured({"input_ids": input_ids, **options})

    model.generate = stop
    try:
        model.infer(tokenizer, prompt=PROMPT, image_file=str(path), output_path=str(scratch),
                    base_size=base_size, image_size=image_size, crop_mode=crop_mode)  # fmt: skip
    except Captured as caught:
        inputs: dict[str, Any] = caught.args[0]
        return inputs
    finally:
        model.generate = original
    raise RuntimeError(f"infer did not call generate for {path}")


def greedy(model: Any, inputs: dict[str, Any]) -> Any:
    """Ids that greedy decoding gives, the prompt left out: `[n]` int64 on the CPU."""
    import torch

    kept = ("images", "images_seq_mask", "images_spatial_crop")
    with torch.autocast("cuda", dtype=torch.bfloat16), torch.no_grad():
        output = model.generate(
            inputs["input_ids"], **{name: inputs[name] for name in kept},
            do_sample=False, max_new_tokens=LONGEST, no_repeat_ngram_size=20, eos_token_id=1,
        )  # fmt: skip
    return output[0, inputs["input_ids"].shape[1] :].cpu().contiguous()


def describe(name: str, preset: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """One entry of `preprocess.json`."""
    ids = inputs["input_ids"][0].tolist()
    columns, rows = inputs["images_spatial_crop"][0].tolist()
    tiles, pages = inputs["images"][0]
    tiled = columns * rows > 1
    return {
        "image": name,
        "preset": preset,
        "crop_grid": [columns, rows],
        "vision_tokens": int(inputs["images_seq_mask"].sum()),
        "length": len(ids),
        "head": ids[:3],
        "tail": ids[-10:],
        "image_start": inputs["images_seq_mask"][0].tolist().index(True),
        "global_size": list(pages.shape[-2:]),
        "n_tiles": len(tiles) if tiled else 0,
        "global_view": figures(pages[0]),
        "tiles": [figures(tile) for tile in tiles] if tiled else [],
    }


def figures(view: Any) -> dict[str, list[float]]:
    """Channel statistics and 64 probes of a view, rounded as the goldens are."""
    side = view.shape[-1]
    rows = [side * i // 8 + side // 16 for i in (0, 2, 4, 6)]
    columns = [side * j // 8 + side // 16 for j in range(8)]
    values = view.float()
    probes = [values[c, y, x].item() for c in (0, 2) for y in rows for x in columns]
    return {
        "mean": [round(v, 3) for v in values.mean((1, 2)).tolist()],
        "std": [round(v, 3) for v in values.std((1, 2)).tolist()],
        "probe": [round(v, 3) for v in probes],
    }


if __name__ == "__main__":
    main()
