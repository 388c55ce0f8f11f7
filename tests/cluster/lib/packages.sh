# shellcheck shell=bash
# Installs Debian packages whose files are missing.

# package=a file of it. kubectl may come from another source, and two packages of it conflict.
# shellcheck disable=SC2034 # the scripts that source this file use these lists
CLUSTER_PACKAGES=(
    etcd-server=/usr/bin/etcd
    containerd=/usr/bin/containerd
    runc=/usr/sbin/runc
    containernetworking-plugins=/usr/lib/cni/bridge
    iptables=/usr/sbin/iptables
    iproute2=/usr/bin/ip
    conntrack=/usr/sbin/conntrack
    socat=/usr/bin/socat
    ethtool=/usr/sbin/ethtool
    curl=/usr/bin/curl
    openssl=/usr/bin/openssl
    jq=/usr/bin/jq
    gcc=/usr/bin/gcc
    libc6-dev=/usr/include/stdlib.h
)
# shellcheck disable=SC2034
BUILD_PACKAGES=(dpkg-dev=/usr/bin/dpkg-source golang-go=/usr/bin/go patch=/usr/bin/patch)
# shellcheck disable=SC2034
IMAGE_PACKAGES=(busybox-static=/bin/busybox jq=/usr/bin/jq)
# shellcheck disable=SC2034
PYTHON_IMAGE_PACKAGES=(mmdebstrap=/usr/bin/mmdebstrap python3-pip=/usr/bin/pip3)

need_packages() {
    local entry missing=()
    for entry in "$@"; do
        [[ -e ${entry#*=} ]] || missing+=("${entry%%=*}")
    done
    ((${#missing[@]})) || return 0
    is_debian_root || die "these packages are missing and can only be installed as root on Debian: ${missing[*]}"
    say "installing ${missing[*]}"
    mkdir -p "$STATE/log"
    logged "$STATE/log/apt.log" "cannot install Debian packages: ${missing[*]}" apt_install "${missing[@]}"
}

# A list of packages that is out of date names files that are gone: then it is fetched anew. Another program may be
# installing at the moment (a machine that updates itself): apt waits for it.
apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    local install=(apt-get install --yes --no-install-recommends --option DPkg::Lock::Timeout=300 "$@")
    "${install[@]}" || { apt-get update --option DPkg::Lock::Timeout=300 && "${install[@]}"; }
}

need_kubectl() { command -v kubectl >/dev/null || need_packages kubernetes-client=/usr/bin/kubectl; }

# Any version; the package "postgresql" is that of this Debian release.
need_postgres() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || need_packages postgresql=/nowhere; }

is_debian_root() { ((EUID == 0)) && grep -q '^ID=debian$' /etc/os-release 2>/dev/null; }
