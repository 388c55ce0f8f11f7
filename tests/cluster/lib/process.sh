# shellcheck shell=bash
# Processes that outlive a script: starts them, identifies them by pid and start time, and stops them.

mkdir -p "$STATE/pid" "$STATE/log"

# A pid alone may by now belong to another process; together with its start time (in ticks since boot) it cannot.
process_start_time() {
    local stat fields
    { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
    read -ra fields <<<"${stat##*) }" # the name of the command, before this, may contain spaces
    [[ ${fields[0]} != Z ]] || return 1
    echo "${fields[19]}"
}

alive() {
    local pid start
    { read -r pid start <"$STATE/pid/$1"; } 2>/dev/null || return 1
    [[ $(process_start_time "$pid") == "$start" ]]
}

# launch NAME COMMAND…: detached from the terminal and from every inherited descriptor. A test harness that waits for the
# end of a pipe would otherwise wait for the whole cluster.
launch() {
    local name=$1 pid fd
    shift
    [[ ! -e $STATE/log/$name.log ]] || mv "$STATE/log/$name.log" "$STATE/log/$name.log.old"
    (
        for fd in /proc/self/fd/*; do
            fd=${fd##*/}
            if ((fd > 2 && fd != 255)); then eval "exec $fd>&-"; fi
        done
        exec setsid "$@" </dev/null >"$STATE/log/$name.log" 2>&1
    ) &
    pid=$!
    echo "$pid $(process_start_time "$pid")" >"$STATE/pid/$name"
}

# halt NAME SIGNAL [SECONDS]: sends the signal, waits for the end, and kills the process after that time.
halt() {
    local name=$1 signal=$2 timeout=${3:-10} pid _ tick
    if alive "$name"; then
        read -r pid _ <"$STATE/pid/$name"
        kill "-$signal" "$pid" 2>/dev/null || true
        for ((tick = 0; tick < timeout * 20; tick++)); do
            alive "$name" || break
            sleep 0.05
        done
        if alive "$name"; then
            kill -KILL "$pid" 2>/dev/null || true
            while alive "$name"; do sleep 0.05; done
        fi
    fi
    rm -f "$STATE/pid/$name"
}

# wait_until NAME SECONDS COMMAND…: waits until the command succeeds; else names the component and shows its log.
wait_until() {
    local name=$1 deadline=$((SECONDS + $2))
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ! alive "$name"; then
            tail -n 20 "$STATE/log/$name.log" >&2 || true
            die "$name ended while starting (its log is $STATE/log/$name.log)"
        fi
        if ((SECONDS >= deadline)); then
            tail -n 20 "$STATE/log/$name.log" >&2 || true
            die "$name did not get ready in time: $* (its log is $STATE/log/$name.log)"
        fi
        sleep 0.1
    done
}
