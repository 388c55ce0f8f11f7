# shellcheck shell=bash
# Shared by the scripts in this directory: the paths of the tests' Podman. Sourced, never run.

# shellcheck source=../cluster/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cluster/lib/common.sh"

PODMAN=$STATE-podman
# Separate from the configuration and the containers of the machine's Podman.
export CONTAINERS_CONF=$PODMAN/containers.conf CONTAINERS_STORAGE_CONF=$PODMAN/storage.conf

die() {
    say "tests/podman/$(basename "$0"): $*"
    exit 1
}
