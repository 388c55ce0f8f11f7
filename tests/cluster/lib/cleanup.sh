# shellcheck shell=bash
# Removes what a cluster leaves behind when its processes have ended: containers and their shims, mounts, network
# namespaces, control groups, logs. Finds them by their location, never only by the name of a process.

# cgroup v1 has a directory for each controller, v2 one for all.
CGROUP_ROOTS=(/sys/fs/cgroup)
[[ -e /sys/fs/cgroup/cgroup.controllers ]] || CGROUP_ROOTS=(/sys/fs/cgroup/*/)

clean_leftovers() {
    kill_pods
    remove_pod_logs
    remove_mounts
    remove_cgroups
    rm -rf --one-file-system "$RUN/containerd" "$RUN/ipam" "$STATE/kubelet"
}

# Shims first: containerd would restart what they report as ended.
kill_pods() {
    local try pids
    for ((try = 0; try < 100; try++)); do
        mapfile -t pids < <(shim_pids; cgroup_pids)
        ((${#pids[@]})) || return 0
        kill -KILL "${pids[@]}" 2>/dev/null || true
        sleep 0.05
    done
    say "cannot kill these processes of Pods: ${pids[*]}"
}

shim_pids() {
    local file command
    for file in /proc/[0-9]*/cmdline; do
        { command=$(tr '\0' ' ' <"$file"); } 2>/dev/null || continue # ended meanwhile
        [[ $command == *containerd-shim*" -address $CONTAINERD_SOCKET"* ]] || continue
        file=${file#/proc/}
        process_start_time "${file%/cmdline}" >/dev/null && echo "${file%/cmdline}"
    done
}

our_cgroups() { # deepest first
    local root
    for root in "${CGROUP_ROOTS[@]}"; do
        [[ ! -d $root/$CGROUP ]] || find "$root/$CGROUP" -depth -type d
    done
}

cgroup_pids() {
    local group
    our_cgroups | while read -r group; do
        cat "$group/cgroup.procs" 2>/dev/null || true
    done | sort -un
}

remove_cgroups() {
    local group try
    for ((try = 0; try < 40; try++)); do
        our_cgroups | while read -r group; do rmdir "$group" 2>/dev/null || true; done
        [[ -n $(our_cgroups) ]] || return 0
        sleep 0.05
    done
}

remove_mounts() {
    local point
    # The fifth field is the mount point, with spaces written as \040; the youngest mount comes last.
    awk '{print $5}' /proc/self/mountinfo | tac | while read -r point; do
        point=$(printf '%b' "$point")
        if [[ $point == "$STATE"/* || $point == "$RUN"/* ]]; then
            umount "$point" 2>/dev/null || umount --lazy "$point" || true
        fi
    done
}

# All kubelets of a machine share the directory of logs; only those of our own Pods are removed.
remove_pod_logs() {
    local uid
    for uid in "$STATE"/kubelet/pods/*; do
        rm -rf /var/log/pods/*_"${uid##*/}"
    done
    find /var/log/containers -xtype l -delete 2>/dev/null || true
}
