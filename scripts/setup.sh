#!/bin/sh
# Make or refresh .venv with everything the demo and the tests need.
#
# A machine whose Python already has a CUDA build of torch keeps it: the environment sees it and a
# constraint pins exactly that build. Any other machine gets the torch of constraints.txt.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "setup: $1" >&2
    exit 1
}

suitable() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

python=""
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if suitable "$candidate"; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] ||
    fail "needs Python 3.11 or newer as ${PYTHON:-python3}; install it or run: make PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python lacks the venv module; install it (Debian and Ubuntu: apt install python3-venv)"

cuda_torch=$("$python" - <<'PY' 2>/dev/null || true
import torch
if torch.version.cuda:
    print(torch.__version__)
PY
)

stamp=.venv/.foremoe-setup
want=$( (cat pyproject.toml constraints.txt scripts/setup.sh; echo "$cuda_torch"; "$python" -V) | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    exit 0
fi

if [ -n "$cuda_torch" ]; then
    echo "setup: keeping the CUDA torch $cuda_torch of $python"
    "$python" -m venv --clear --system-site-packages .venv || fail "could not create .venv"
    { grep -v '^torch==' constraints.txt; echo "torch==$cuda_torch"; } >.venv/constraints.txt
else
    echo "setup: CPU machine, installing the torch of constraints.txt (some minutes the first time)"
    "$python" -m venv --clear .venv || fail "could not create .venv"
    cp constraints.txt .venv/constraints.txt
fi
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
    -c .venv/constraints.txt -e '.[transformers,test,dev]' ||
    fail "pip could not install the packages; its message is above (is the network or index reachable?)"
echo "$want" >"$stamp"
