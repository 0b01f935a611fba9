"""The library on an Ascend NPU, as short as it gets.

    source /usr/local/Ascend/ascend-toolkit/set_env.sh
    python examples/ascend/basic_usage.py CHECKPOINT PAGE [DEVICE]

CHECKPOINT is a folder such as checkpoints/deepseek-ocr. The same runs on any other device.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deepseek_ocr import CropSettings, OcrEngine


def main(checkpoint: str, page: str, device: str = "npu:0") -> None:
    """Read a page: the text as it comes, then where each block is."""
    engine = OcrEngine.load(checkpoint, device)  # float16; dtype="bfloat16" on a 910B by choice
    prompt = "<image>\n<|grounding|>Convert the document to markdown."
    base = CropSettings(base_size=1024, image_size=1024, crop_mode=False)
    reading = engine.read(page, prompt, base)
    print(reading.markdown)
    for region in reading.regions:
        print(region.label, region.boxes)
    print(f"ended by {reading.finish_reason}; {reading.timings}")
    engine.close()


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
