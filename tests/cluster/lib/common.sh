# shellcheck shell=bash
# Shared by all scripts: directories, error messages, and the constants of the cluster. To be sourced; it only sets shell
# variables and functions.

set -euo pipefail

CLUSTER_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
STATE=${SYNCCTL_TEST_STATE:-/var/tmp/syncctl-test}
CACHE=${SYNCCTL_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/syncctl-test}
# For sockets and Pod mounts: the path of a unix socket has at most 108 bytes, and that of the state may be long.
RUN=/run/syncctl-test
export CLUSTER_DIR STATE CACHE RUN

# Not the default ports, which services of the machine may use.
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
BRIDGE_ADDRESS=10.244.0.1 # the host as Pods reach it
SERVICE_NETWORK=10.96.0.0/24
API_SERVICE_ADDRESS=10.96.0.1
CGROUP=syncctl-test # the parent of all Pods, by which the processes of a killed cluster are found
PAUSE_IMAGE=syncctl-test/pause:1
CONTAINERD_SOCKET=$RUN/containerd.sock
export NODE BRIDGE POD_NETWORK BRIDGE_ADDRESS SERVICE_NETWORK API_SERVICE_ADDRESS
export CGROUP PAUSE_IMAGE CONTAINERD_SOCKET

# Debian's tools first: the python or go of a version manager would not fit the images.
export PATH="/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin:$PATH"
export LC_ALL=C.UTF-8

say() { printf '%s\n' "$*" >&2; }

die() {
    say "tests/cluster/$(basename "$0"): $*"
    exit 1
}

# The kubeconfig of our own cluster may be set too, by the env file.
brought_cluster() {
    skipped_cluster || [[ -n ${SYNCCTL_TEST_KUBECONFIG:-} && $SYNCCTL_TEST_KUBECONFIG != "$STATE/admin.kubeconfig" ]]
}

# The tests that need a cluster are switched off; the others still get their PostgreSQL.
skipped_cluster() { [[ ${SYNCCTL_TEST_SKIP_CLUSTER:-} == 1 ]]; }

brought_database() {
    [[ -n ${SYNCCTL_TEST_DATABASE_URL:-} && $SYNCCTL_TEST_DATABASE_URL != *"@127.0.0.1:$POSTGRES_PORT/"* ]]
}

# One `up` or `down` at a time. Not in the state directory, which --purge removes.
take_lock() {
    mkdir -p "$(dirname "$STATE")"
    exec {LOCK_FD}>"$STATE.lock"
    flock "$LOCK_FD"
}

# Runs a command with low priority: tests are usually compiled at the same time.
gently() { nice -n 10 "$@"; }

# logged LOG FAILURE COMMAND…: runs the command with its output in LOG, and shows the end of LOG if it fails.
# Not to be used in a condition or on the left of ||: there bash continues after failures inside.
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
