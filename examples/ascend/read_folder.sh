#!/usr/bin/env bash
# Reads every document in a folder into another one; run it again to go on where it was stopped.
#
#     examples/ascend/read_folder.sh scans out [options of deepseek-ocr read]
#
# Several NPUs at once: examples/ascend/read_folder.sh scans out --devices npu:0,npu:1
set -euo pipefail

if (($# < 2)); then
    echo "usage: $0 FOLDER OUTPUT [options of deepseek-ocr read]" >&2
    exit 2
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=examples/ascend/environment.sh
source "$here/environment.sh"

input="$1" output="$2"
shift 2
exec "$PYTHON" -m deepseek_ocr read "$input" -o "$output" --format md,json "$@"
