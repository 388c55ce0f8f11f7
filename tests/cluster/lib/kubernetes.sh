# shellcheck shell=bash
# The components of the one-node cluster: configuration, start and readiness. Each ensure_* returns at once if its component
# is running.

ensure_etcd() {
    alive etcd && return
    launch etcd etcd --name syncctl-test --data-dir "$STATE/etcd" \
        --listen-client-urls "http://127.0.0.1:$ETCD_PORT" --advertise-client-urls "http://127.0.0.1:$ETCD_PORT" \
        --listen-peer-urls "http://127.0.0.1:$ETCD_PEER_PORT" \
        --initial-advertise-peer-urls "http://127.0.0.1:$ETCD_PEER_PORT" \
        --initial-cluster "syncctl-test=http://127.0.0.1:$ETCD_PEER_PORT"
    wait_until etcd 30 curl --silent --fail --noproxy '*' "http://127.0.0.1:$ETCD_PORT/health"
}

ensure_containerd() {
    alive containerd && return
    mkdir -p "$RUN"
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE every sandbox would fail to lower its score.
    # netns_mounts_under_state_dir: so that the namespaces of a killed cluster can be distinguished from those of others.
    cat >"$STATE/containerd.toml" <<TOML
version = 2
root = "$STATE/containerd"
state = "$RUN/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "$CONTAINERD_SOCKET"
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
sandbox_image = "docker.io/$PAUSE_IMAGE"
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "$STATE/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
TOML
    launch containerd containerd --config "$STATE/containerd.toml"
    wait_until containerd 30 ctr --address "$CONTAINERD_SOCKET" --connect-timeout 1s version
}

has_image() {
    [[ -n $(ctr --address "$CONTAINERD_SOCKET" --namespace k8s.io images ls --quiet "name==docker.io/$1") ]]
}

# It announces no endpoint of its own: how its Service is reached is in network.sh.
# NodeRestriction stays on as in a usual cluster. TaintNodesByCondition (and below the node lifecycle controller) are
# off: with one node they only delay the first Pod, and evict everything when a busy machine misses heartbeats.
ensure_apiserver() {
    alive kube-apiserver && return
    launch kube-apiserver "$KUBERNETES/kube-apiserver" \
        --etcd-servers "http://127.0.0.1:$ETCD_PORT" --secure-port "$API_PORT" --bind-address 127.0.0.1 \
        --advertise-address "$BRIDGE_ADDRESS" --endpoint-reconciler-type none --cert-dir "$STATE/apiserver" \
        --client-ca-file "$PKI/ca.crt" --tls-cert-file "$PKI/apiserver.crt" --tls-private-key-file "$PKI/apiserver.key" \
        --kubelet-client-certificate "$PKI/admin.crt" --kubelet-client-key "$PKI/admin.key" \
        --kubelet-preferred-address-types InternalIP \
        --service-account-key-file "$PKI/service-account.pub" \
        --service-account-signing-key-file "$PKI/service-account.key" \
        --service-account-issuer https://kubernetes.default.svc \
        --service-cluster-ip-range "$SERVICE_NETWORK" \
        --authorization-mode Node,RBAC --allow-privileged \
        --enable-admission-plugins NodeRestriction --disable-admission-plugins TaintNodesByCondition
}

apiserver_ready() { [[ $(api /readyz) == ok ]]; }

ensure_controller_manager() {
    alive kube-controller-manager && return
    launch kube-controller-manager "$KUBERNETES/kube-controller-manager" \
        --kubeconfig "$STATE/admin.kubeconfig" --leader-elect=false --port 0 --bind-address 127.0.0.1 \
        --cert-dir "$STATE/controller-manager" --controllers '*,-nodelifecycle' \
        --service-account-private-key-file "$PKI/service-account.key" --root-ca-file "$PKI/ca.crt" \
        --concurrent-gc-syncs 5 --kube-api-qps 100 --kube-api-burst 200
}

ensure_scheduler() {
    alive kube-scheduler && return
    launch kube-scheduler "$KUBERNETES/kube-scheduler" --kubeconfig "$STATE/admin.kubeconfig" \
        --leader-elect=false --port 0 --bind-address 127.0.0.1 --cert-dir "$STATE/scheduler"
}

# Makes Services work, from Pods and from this machine. Everything is masqueraded: two Pods share the bridge, and a direct
# answer would come from an address that the client did not call. Node ports open on the bridge only. The machine keeps its
# limits of connection tracking and its setting of route_localnet: kube-proxy sets that in a private copy.
ensure_proxy() {
    local switch=/proc/sys/net/ipv4/conf/all/route_localnet
    alive kube-proxy && return
    echo 1 >"$RUN/route_localnet"
    # shellcheck disable=SC2016 # the inner shell expands
    launch kube-proxy unshare --mount sh -c 'mount --bind "$1" "$2" && shift 2 && exec "$@"' sh \
        "$RUN/route_localnet" "$switch" "$KUBERNETES/kube-proxy" --kubeconfig "$STATE/admin.kubeconfig" \
        --hostname-override "$NODE" --bind-address "$BRIDGE_ADDRESS" --nodeport-addresses "$POD_NETWORK" \
        --proxy-mode iptables --cluster-cidr "$POD_NETWORK" --masquerade-all --iptables-min-sync-period 100ms \
        --conntrack-max-per-core 0 --conntrack-min 0 \
        --conntrack-tcp-timeout-established 0 --conntrack-tcp-timeout-close-wait 0 \
        --healthz-port 0 --metrics-bind-address "127.0.0.1:$PROXY_METRICS_PORT"
}

proxy_ready() { iptables -w -t nat -S KUBE-SERVICES; }

# The root of its control groups must exist in every hierarchy.
ensure_cgroups() {
    local root
    for root in "${CGROUP_ROOTS[@]}"; do mkdir -p "$root/$CGROUP"; done
    if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
        sed 's/[^ ]*/+&/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
    else # without processors a group accepts no process
        cat /sys/fs/cgroup/cpuset/cpuset.cpus >"/sys/fs/cgroup/cpuset/$CGROUP/cpuset.cpus"
        cat /sys/fs/cgroup/cpuset/cpuset.mems >"/sys/fs/cgroup/cpuset/$CGROUP/cpuset.mems"
    fi
}

ensure_kubelet() {
    local resolver=/etc/resolv.conf name_servers
    alive kubelet && return
    ensure_cgroups
    [[ -r $resolver ]] || resolver=''
    # There is no cluster DNS: Pods use the host's resolver. Set as that of the cluster, it avoids a warning event for each Pod.
    name_servers=$(sed -nE 's/^nameserver +([0-9.]+) *$/\1/p' "$resolver" 2>/dev/null | grep -v '^127\.' | paste -sd, || true)
    # Get, not Watch: a Secret that was just made is often not yet in the watch's cache, and the Pod waits a second more.
    # The second status update is the first that can say Ready, so the next one must not be ten seconds away.
    # The image collector would throw the tests' images away on a full disk, and they cannot be pulled again;
    # the eviction limits are for machines that are nearly full anyway.
    cat >"$STATE/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $BRIDGE_ADDRESS
authentication:
  x509: {clientCAFile: $PKI/ca.crt}
  webhook: {enabled: true}
  anonymous: {enabled: false}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP
clusterDNS: [$name_servers]
configMapAndSecretChangeDetectionStrategy: Get
enforceNodeAllocatable: []
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
eventBurst: 200
eventRecordQPS: 100
failSwapOn: false
healthzPort: $KUBELET_HEALTH_PORT
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
kubeAPIBurst: 200
kubeAPIQPS: 100
makeIPTablesUtilChains: false
nodeStatusReportFrequency: 5m
nodeStatusUpdateFrequency: 1s
oomScoreAdj: 0
resolvConf: "$resolver"
syncFrequency: 3s
volumePluginDir: $STATE/kubelet/volume-plugins
YAML
    launch kubelet "$KUBERNETES/kubelet" --config "$STATE/kubelet.yaml" --kubeconfig "$STATE/node.kubeconfig" \
        --container-runtime remote --container-runtime-endpoint "unix://$CONTAINERD_SOCKET" \
        --hostname-override "$NODE" --node-ip "$BRIDGE_ADDRESS" \
        --root-dir "$STATE/kubelet" --cert-dir "$STATE/kubelet/pki"
}

# The kubelet is asked too: after its restart the API server still returns the old status.
node_ready() {
    [[ $(curl --silent --noproxy '*' "http://127.0.0.1:$KUBELET_HEALTH_PORT/healthz") == ok ]] || return
    api "/api/v1/nodes/$NODE" \
        | jq --exit-status '.status.conditions | any(.type == "Ready" and .status == "True")'
}

KUBERNETES_PROCESSES=(kubelet kube-proxy kube-scheduler kube-controller-manager kube-apiserver containerd etcd)

any_kubernetes_alive() {
    local name
    for name in "${KUBERNETES_PROCESSES[@]}"; do
        if alive "$name"; then return 0; fi
    done
    return 1
}

# Ports, bridge and control groups exist once on a machine, so a second cluster must wait for the first.
claim_machine() {
    local owner=$STATE
    [[ ! -e $RUN/owner ]] || owner=$(<"$RUN/owner")
    if [[ $owner != "$STATE" ]] && STATE=$owner any_kubernetes_alive; then
        die "another cluster is running: SYNCCTL_TEST_STATE=$owner tests/cluster/down stops it"
    fi
    mkdir -p "$RUN"
    echo "$STATE" >"$RUN/owner"
}

owns_machine() { [[ -e $RUN/owner && $(<"$RUN/owner") == "$STATE" ]]; }

ensure_kubernetes() {
    claim_machine
    KUBERNETES=$("$CLUSTER_DIR/lib/build-kubernetes")
    # If all processes have ended, so have the Pods in etcd: the next cluster starts empty. Images stay.
    if ! any_kubernetes_alive; then
        clean_leftovers
        rm -rf --one-file-system "$STATE/etcd"
    fi
    ensure_network
    ensure_containerd
    has_image "$PAUSE_IMAGE" || "$CLUSTER_DIR/images" pause # may wait for the end of another build
    ensure_etcd
    ensure_apiserver
    ensure_kubelet # it searches for Docker for five seconds while the API server starts
    wait_until kube-apiserver 120 apiserver_ready
    ensure_controller_manager
    ensure_scheduler
    ensure_proxy
    wait_until kubelet 120 node_ready
    wait_until kube-controller-manager 60 api /api/v1/namespaces/default/serviceaccounts/default
    alive kube-scheduler || wait_until kube-scheduler 0 false
    wait_until kube-proxy 30 proxy_ready
}
