#!/usr/bin/env bash
# Measures this machine: load time, seconds per page by length of text, characters per second,
# success. Prints a table for docs/devices.md and keeps every page in report.json.
#
#     examples/ascend/benchmark.sh [PAGE ...]
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=examples/ascend/environment.sh
source "$here/environment.sh"

pages=()
for page in "$@"; do pages+=("$(realpath "$page")"); done
report="$(pwd)/report.json"
cd "$here/../.."
exec "$PYTHON" -m benchmarks.report --device "$DEEPSEEK_OCR_DEVICE" --json "$report" \
    ${pages[@]+"${pages[@]}"}
