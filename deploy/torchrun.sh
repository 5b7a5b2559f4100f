#!/bin/sh
# Runs torchrun on this node with a daemon beside it, which ends when torchrun does:
#   deploy/torchrun.sh --standalone --nproc-per-node 8 train.py            one node
#   NODES=2 NODE_RANK=0 MASTER_ADDR=node0 deploy/torchrun.sh --nproc-per-node 8 train.py
# On several nodes run it on each, with its own NODE_RANK and the credentials of serve-node.sh.
# train.py finds the daemon at $FOREMOE_SOCKET: AttachOptions(address=os.environ["FOREMOE_SOCKET"]).
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
FOREMOE_SOCKET=${FOREMOE_SOCKET:-${TMPDIR:-/tmp}/foremoe-$(id -u)-$$/runtime.sock}
export FOREMOE_SOCKET
if [ "${NODES:-1}" -gt 1 ]; then
    export FOREMOE_NODE="${NODE_RANK:?}" FOREMOE_LEADER="${MASTER_ADDR:?}"
    "$here/serve-node.sh" &
    set -- --nnodes "$NODES" --node-rank "$NODE_RANK" --rdzv-backend c10d \
        --rdzv-id "${RENDEZVOUS:-foremoe}" --rdzv-endpoint "$MASTER_ADDR:${MASTER_PORT:-29500}" "$@"
else
    foremoe serve --socket "$FOREMOE_SOCKET" &
fi
daemon=$!
trap 'kill "$daemon" 2>/dev/null || true; wait "$daemon" || true' EXIT
trap 'exit 143' TERM INT
# Not needed for correctness: a daemon that comes late only leaves the first steps unbalanced.
torchrun "$@"
