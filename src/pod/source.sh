# Runs the connector: waits for the pipes, redirects its output into them, forwards TERM, reports the exit code and samples
# the resource usage of the container.
# Arguments: the folder of the pipes, which is read-only, the folder of the reports, then the Airbyte command and its options.
# Must run in dash, busybox and bash.
pipes=$1 reports=$2
shift 2
# Replaces a report. Its arguments: the name, the end of the temporary name, so that two writers do not mix, and the line.
# The connector may have created either name, as a FIFO or a folder: neither may stop this script.
report() {
  report=$reports/$1
  for file in "$report" "$report.$2"; do
    { [ ! -e "$file" ] || [ -f "$file" ]; } && [ ! -L "$file" ] || rm -rf "$file"
  done
  echo "$3" >"$report.$2" && chmod 644 "$report.$2" && mv "$report.$2" "$report"
}
# Writes one line from the container's own control group: nanoseconds of CPU time and bytes of memory; nothing if there
# is no control group to read. The argument ends the name of the temporary file. The last sample holds the peak memory
# instead, where the kernel knows it: the connector has ended.
sample_usage() {
  cpu= memory= groups=/sys/fs/cgroup
  if [ -r $groups/memory.current ]; then
    now=$groups/memory.current peak=$groups/memory.peak
    while read -r key value; do
      [ "$key" != usage_usec ] || cpu=${value}000
    done <$groups/cpu.stat
  else
    now=$groups/memory/memory.usage_in_bytes peak=$groups/memory/memory.max_usage_in_bytes
    for file in $groups/cpuacct/cpuacct.usage $groups/cpu,cpuacct/cpuacct.usage; do
      [ ! -r $file ] || read -r cpu <$file
    done
  fi
  [ $1 = new ] || [ ! -r $peak ] || now=$peak
  read -r memory <$now
  [ -n "$cpu" ] && [ -n "$memory" ] && report metrics $1 "$cpu $memory"
}
# Samples early once, for short tasks, then as often as the sidecar reads. Stops for good when a sample fails. A process
# that is just starting can lose a signal: TERM goes to the sleeper until it is gone, and to this process twice; if both
# are lost, the loop still ends with the connector.
watch_usage() {
  trap 'while kill $!; do sleep 0.05 || sleep 1; done; exit' TERM
  interval=2
  while [ ! -e "$reports/exit_code" ]; do
    sleep $interval &
    wait $! && sample_usage new || exit
    interval=10
  done
}
finish() {
  # After TERM the output is incomplete, whatever exit code the connector chose.
  [ -z "$terminated" ] || code=143
  [ -z "$watcher" ] || { kill $watcher; sample_usage last; } 2>/dev/null
  report exit_code new "$code"
  [ -z "$watcher" ] || kill $watcher 2>/dev/null
  exit "$code"
}
# PID 1 ignores a signal without a trap.
terminated=
watcher=
trap 'exit 143' TERM
tries=0
while [ ! -e "$pipes/ready" ]; do
  tries=$((tries + 1))
  if [ $tries -gt 6000 ]; then echo "the sidecar did not create the pipes" >&2; code=125; finish; fi
  sleep 0.05 2>/dev/null || sleep 1
done
# stderr first: a reader may open the pipes in this order, one after the other.
exec 2>"$pipes/stderr" >"$pipes/stdout"
if [ -z "$AIRBYTE_ENTRYPOINT" ]; then
  echo "AIRBYTE_ENTRYPOINT is not set in this image" >&2
  code=127
  finish
fi
# Outside a container the supervisor samples: the control group is that of the whole machine.
if [ "$SYNCCTL_USAGE" != external ]; then
  # Before the connector, so that `$!` is the connector later. It holds no pipe: the connector's end must close them.
  trap 'kill $! 2>/dev/null; exit 143' TERM
  watch_usage >/dev/null 2>&1 &
  watcher=$!
fi
# A shell does not forward signals to a foreground process: hence a background process, a trap and a wait.
# A foreign sidecar must see its own TERM before it sees the end of the pipes, which it takes for success.
trap 'terminated=1; trap "terminated=1" TERM; [ -z "$SYNCCTL_TERM_DELAY" ] || sleep $SYNCCTL_TERM_DELAY; kill -TERM 0' TERM
(
  trap : TERM
  eval "$AIRBYTE_ENTRYPOINT \"\$@\""
) &
child=$!
code=0
wait $child || code=$?
# A trapped signal ends the first wait; the connector may need longer.
while kill -0 $child 2>/dev/null; do
  code=0
  wait $child || code=$?
done
finish
