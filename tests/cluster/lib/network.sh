# shellcheck shell=bash
# The Pods' network: the bridge, its address, and the firewall rules. The bridge exists before the first Pod, because
# PostgreSQL and the kubelet listen on its address.

# Without ipMasq in the CNI plugin only these rules and those of kube-proxy must be removed. The last two are the Service of
# the API server, from Pods and from this machine: it listens on loopback alone, so that no other machine reaches it. An
# endpoint must not be a loopback address, so the Service has none, and kube-proxy creates no rules for it.
NETWORK_RULES=(
    "filter INPUT -i $BRIDGE -j ACCEPT"
    "filter FORWARD -i $BRIDGE -j ACCEPT"
    "filter FORWARD -o $BRIDGE -j ACCEPT"
    "nat POSTROUTING -s $POD_NETWORK ! -d $POD_NETWORK -j MASQUERADE"
    "nat PREROUTING -i $BRIDGE -d $API_SERVICE_ADDRESS/32 -p tcp --dport 443 -j DNAT --to-destination 127.0.0.1:$API_PORT"
    "nat OUTPUT -d $API_SERVICE_ADDRESS/32 -p tcp --dport 443 -j DNAT --to-destination 127.0.0.1:$API_PORT"
)

ensure_network() {
    local rule table chain match
    if [[ ! -d /sys/class/net/$BRIDGE ]]; then
        # With an address of its own: else it takes that of whatever Pod has the lowest, and each time that changes,
        # the other Pods have no connection for seconds.
        ip link add "$BRIDGE" address 0a:58:0a:f4:00:01 type bridge
        ip address add "$BRIDGE_ADDRESS/${POD_NETWORK#*/}" dev "$BRIDGE"
        ip link set "$BRIDGE" up
    fi
    echo 1 >/proc/sys/net/ipv4/ip_forward
    echo 1 >"/proc/sys/net/ipv4/conf/$BRIDGE/route_localnet" # for the redirection to 127.0.0.1
    for rule in "${NETWORK_RULES[@]}"; do
        read -r table chain match <<<"$rule"
        # shellcheck disable=SC2086 # the words of a rule are words
        iptables -w -t "$table" -C "$chain" $match 2>/dev/null || iptables -w -t "$table" -I "$chain" $match
    done
    mkdir -p "$STATE/cni"
    cat >"$STATE/cni/10-syncctl-test.conflist" <<JSON
{
  "cniVersion": "0.4.0",
  "name": "syncctl-test",
  "plugins": [{
    "type": "bridge", "bridge": "$BRIDGE", "isGateway": true, "ipMasq": false, "hairpinMode": true,
    "ipam": {
      "type": "host-local", "dataDir": "$RUN/ipam",
      "ranges": [[{"subnet": "$POD_NETWORK"}]], "routes": [{"dst": "0.0.0.0/0"}]
    }
  }]
}
JSON
}

remove_network() {
    local rule table chain match
    for rule in "${NETWORK_RULES[@]}"; do
        read -r table chain match <<<"$rule"
        # shellcheck disable=SC2086
        while iptables -w -t "$table" -D "$chain" $match 2>/dev/null; do :; done
    done
    remove_service_rules
    [[ ! -d /sys/class/net/$BRIDGE ]] || ip link delete "$BRIDGE"
    rm -f /var/lib/cni/results/syncctl-test-*
}

# kube-proxy leaves its chains behind when it ends, and its --cleanup misses some. One transaction for each table: first the
# jumps from the built-in chains, then the chains, which are emptied first because they refer to each other.
remove_service_rules() {
    local table saved
    for table in filter nat mangle; do
        saved=$(iptables-save -t "$table" 2>/dev/null | grep KUBE- || true)
        [[ -n $saved ]] || continue
        {
            echo "*$table"
            sed -nE 's/^-A ([A-Z]+ .*-j KUBE-)/-D \1/p' <<<"$saved"
            sed -nE 's/^(:KUBE-[^ ]+) .*/\1 - [0:0]/p' <<<"$saved"
            sed -nE 's/^:(KUBE-[^ ]+) .*/-X \1/p' <<<"$saved"
            echo COMMIT
        } | iptables-restore -w --noflush
    done
}
