# What every script here needs: Ascend's toolkit, a Python, the device. To be sourced.
toolkit="${ASCEND_TOOLKIT:-/usr/local/Ascend/ascend-toolkit}"
if [[ ! -f "$toolkit/set_env.sh" ]]; then
    echo "There is no $toolkit/set_env.sh. Install CANN, or set ASCEND_TOOLKIT to its folder." >&2
    exit 2
fi
set +u # the toolkit's script reads variables that nobody set
# shellcheck disable=SC1091
source "$toolkit/set_env.sh"
set -u

export DEEPSEEK_OCR_DEVICE="${DEEPSEEK_OCR_DEVICE:-npu:0}"
PYTHON="${PYTHON:-python}"
export PYTHONPATH="$here/../..${PYTHONPATH:+:$PYTHONPATH}" # the package is run from the checkout
