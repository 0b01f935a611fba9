#!/usr/bin/env bash
# Sets Ascend's toolkit up and starts the interactive prompt: a path, "test", "all FOLDER", "quit".
#
#     examples/ascend/start_ocr.sh [options of deepseek-ocr read]
#
# ASCEND_TOOLKIT names the folder of the toolkit where it is not in the usual place.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=examples/ascend/environment.sh
source "$here/environment.sh"

exec "$PYTHON" -m deepseek_ocr read "$@"
