# shellcheck shell=bash
# What every script here shares: where things are, how to complain, and the fixed points of the tests' own cluster.
# Sourced, never run; it starts nothing and changes nothing but shell variables.

set -euo pipefail

CLUSTER_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
STATE=${SYNCCTL_TEST_STATE:-/var/tmp/syncctl-test}
CACHE=${SYNCCTL_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/syncctl-test}
# Sockets and Pod mounts live here: a unix socket's path has at most 108 bytes and the state folder may be deep.
RUN=/run/syncctl-test
export CLUSTER_DIR STATE CACHE RUN

# Ports of our own wherever a default may already be taken by a service of the machine.
ETCD_PORT=12379
ETCD_PEER_PORT=12380
API_PORT=16443
KUBELET_HEALTH_PORT=10248
PROXY_METRICS_PORT=10249
POSTGRES_PORT=54329
export ETCD_PORT ETCD_PEER_PORT API_PORT KUBELET_HEALTH_PORT PROXY_METRICS_PORT POSTGRES_PORT

NODE=syncctl-test
BRIDGE=syncctl-cni0 # at most 15 characters
POD_NETWORK=10.244.0.0/24
BRIDGE_ADDRESS=10.244.0.1 # how Pods reach the host
SERVICE_NETWORK=10.96.0.0/24
API_SERVICE_ADDRESS=10.96.0.1
CGROUP=syncctl-test # all Pods live below this one, so that a killed cluster's processes can be found
PAUSE_IMAGE=syncctl-test/pause:1
CONTAINERD_SOCKET=$RUN/containerd.sock
export NODE BRIDGE POD_NETWORK BRIDGE_ADDRESS SERVICE_NETWORK API_SERVICE_ADDRESS
export CGROUP PAUSE_IMAGE CONTAINERD_SOCKET

# Debian's own tools come first: a version manager's python or go in front of PATH would not fit the images.
export PATH="/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin:$PATH"
export LC_ALL=C.UTF-8

say() { printf '%s\n' "$*" >&2; }

die() {
    say "tests/cluster/$(basename "$0"): $*"
    exit 1
}

# Sourcing the env file and calling us again must not make our own cluster look like one the user brought.
brought_cluster() {
    skipped_cluster || [[ -n ${SYNCCTL_TEST_KUBECONFIG:-} && $SYNCCTL_TEST_KUBECONFIG != "$STATE/admin.kubeconfig" ]]
}

# The tests that need a cluster are switched off; the others still get their PostgreSQL.
skipped_cluster() { [[ ${SYNCCTL_TEST_SKIP_CLUSTER:-} == 1 ]]; }

brought_database() {
    [[ -n ${SYNCCTL_TEST_DATABASE_URL:-} && $SYNCCTL_TEST_DATABASE_URL != *"@127.0.0.1:$POSTGRES_PORT/"* ]]
}

# One bring-up or tear-down at a time. Beside the state folder, because a purge removes that.
take_lock() {
    mkdir -p "$(dirname "$STATE")"
    exec {LOCK_FD}>"$STATE.lock"
    flock "$LOCK_FD"
}

# Runs the arguments at the priority of a background job: tests are usually compiled at the same time.
gently() { nice -n 10 "$@"; }

# logged LOG FAILURE COMMAND…: runs the command with its output in LOG, whose end is shown when it fails.
# To be called as a statement of its own: on the left of || or in a condition, bash goes on after failures inside.
logged() {
    local log=$1 failure=$2 status
    shift 2
    set +e
    (
        set -e
        "$@"
    ) >"$log" 2>&1
    status=$?
    set -e
    ((status == 0)) && return
    tail -n 20 "$log" >&2
    die "$failure"
}
