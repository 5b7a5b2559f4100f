#!/bin/sh
# Runs the daemon of this node: the leader on node 0, a follower on every other one.
#   FOREMOE_NODE    number of this node
#   FOREMOE_LEADER  host name or address of node 0, as its certificate has it
#   FOREMOE_SOCKET  where this node's ranks find their daemon, in a directory of its own
#   FOREMOE_PORT    of the leader, for followers (default 7400)
# FOREMOE_TLS_CERT, FOREMOE_TLS_KEY, FOREMOE_TLS_CA and FOREMOE_TOKEN_FILE are taken by foremoe
# itself; see docs/security.md. Further arguments are passed on to foremoe serve.
set -eu
: "${FOREMOE_NODE:?}" "${FOREMOE_LEADER:?}" "${FOREMOE_SOCKET:?}"
port=${FOREMOE_PORT:-7400}
if [ "$FOREMOE_NODE" -eq 0 ]; then
    exec foremoe serve --socket "$FOREMOE_SOCKET" --also-listen "0.0.0.0:$port" "$@"
fi
exec foremoe serve --socket "$FOREMOE_SOCKET" --join "$FOREMOE_LEADER:$port" "$@"
