#!/bin/sh
# Make or refresh .venv with everything the demo and the tests need.
#
# All but torch is what requirements/ names, by version and hash. A machine whose Python
# already has a CUDA build of torch keeps it: the environment sees it and a constraint pins exactly
# that build. Any other machine gets the torch of constraints.txt.
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

# One line: the version of a CUDA torch and the folder it is installed in.
cuda_torch=$("$python" - <<'PY' 2>/dev/null || true
import pathlib, torch
if torch.version.cuda:
    print(torch.__version__, pathlib.Path(torch.__file__).parent.parent)
PY
)
cuda_version=${cuda_torch%% *}

stamp=.venv/.foremoe-setup
want=$( (pwd; cat pyproject.toml constraints.txt requirements/*.txt scripts/setup.sh; echo "$cuda_torch"; "$python" -V) | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    exit 0
fi

# Packages may be added to an environment; another place, Python or torch needs a new one.
made_from="$PWD $("$python" -V) $cuda_torch"
if [ "$(cat .venv/.foremoe-python 2>/dev/null)" != "$made_from" ]; then
    "$python" -m venv --clear .venv || fail "could not create .venv"
    echo "$made_from" >.venv/.foremoe-python
fi
if [ -n "$cuda_torch" ]; then
    echo "setup: keeping the CUDA torch $cuda_version of $python"
    # A path file rather than --system-site-packages, which skips the packages of a Python that is
    # itself a virtual environment's.
    echo "${cuda_torch#* }" >"$(.venv/bin/python -c \
        'import sysconfig; print(sysconfig.get_path("purelib"))')/machine.pth"
    { grep -v '^torch==' constraints.txt; echo "torch==$cuda_version"; } >.venv/constraints.txt
else
    echo "setup: $python has no CUDA torch; installing the torch of constraints.txt (some minutes the first time)"
    echo "setup: where pip finds only builds with CUDA (some GB), PIP_EXTRA_INDEX_URL can name PyTorch's index of CPU builds"
    cp constraints.txt .venv/constraints.txt
fi
install() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@" ||
        fail "pip could not install the packages; its message is above (is the network or index reachable?)"
}
install --require-hashes --no-deps -r requirements/locked.txt -r requirements/torchtitan.txt
install -c .venv/constraints.txt --no-build-isolation -e '.[megatron,transformers,report,docs,test,dev]'
echo "$want" >"$stamp"
