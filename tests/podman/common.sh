# shellcheck shell=bash
# What the scripts here share: where the tests' own Podman keeps its things. Sourced, never run.

# shellcheck source=../cluster/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cluster/lib/common.sh"

PODMAN=$STATE-podman
# No setting and no container of the machine's own Podman is touched.
export CONTAINERS_CONF=$PODMAN/containers.conf CONTAINERS_STORAGE_CONF=$PODMAN/storage.conf

die() {
    say "tests/podman/$(basename "$0"): $*"
    exit 1
}
