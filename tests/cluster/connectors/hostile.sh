#!/bin/sh
# Attacks the folders that it shares with the sidecar, as root. Its configuration: {"attack":"ATTACK","host":"FILE"}, on one
# line. ATTACK is what it puts in place of every report, again and again; FILE is one that the sidecar can read. Its last
# message lists what it could change in the folder of the pipes.

command=$1
setting() { sed -n 's/.*"'"$1"'": *"\([^"]*\)".*/\1/p' "$config"; }
attack() { # FILE
    rm -rf "$1"
    case $(setting attack) in
        link) ln -s "$(setting host)" "$1" ;;
        fifo) mkfifo "$1" ;;
        folder) mkdir -p "$1/a" ;;
        endless) cat /dev/zero >"$1" ;;
        device) mknod "$1" c 1 5 ;;
    esac
}

case $command in
    spec)
        echo '{"type":"SPEC","spec":{"connectionSpecification":{"type":"object","properties":{}}}}'
        exit
        ;;
    *) config=$3 ;;
esac
changed=
for name in stdout stderr ready exit_code metrics new; do
    file=/pipes/$name
    { rm "$file" || chmod 0 "$file" || mv "$file" "$file.old" || ln -s "$(setting host)" "$file"; } 2>/dev/null &&
        changed="$changed $name"
done
for name in exit_code exit_code.new metrics metrics.new metrics.last; do attack "/reports/$name" 2>/dev/null; done
# Outlives this script until its container ends, and holds no pipe.
(while :; do attack /reports/exit_code; attack /reports/metrics; done) >/dev/null 2>&1 </dev/null &
echo '{"type":"LOG","log":{"level":"INFO","message":"changed:'"$changed"'"}}'
if [ "$command" = check ]; then
    echo '{"type":"CONNECTION_STATUS","connectionStatus":{"status":"SUCCEEDED"}}'
else
    echo '{"type":"RECORD","record":{"stream":"items","data":{"id":1},"emitted_at":1700000000000}}'
fi
