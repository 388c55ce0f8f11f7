# Runs the connector: waits for the pipes, redirects itself into them, forwards TERM, leaves the exit code behind, and
# notes beside it what the container uses.
# Arguments: the folder of the pipes, then the command word and its options. Must work in dash, busybox and bash.
pipes=$1
shift
# One line, nanoseconds of CPU and bytes of memory, of this container's own control group; nothing where it shows none.
# The argument tells two writers apart. For the last one there is no connector left that uses any memory: it notes the
# most there ever was, where the kernel knows.
sample_use() {
  cpu= memory= groups=/sys/fs/cgroup
  if [ -r $groups/memory.current ]; then
    now=$groups/memory.current most=$groups/memory.peak
    while read -r key value; do
      [ "$key" != usage_usec ] || cpu=${value}000
    done <$groups/cpu.stat
  else
    now=$groups/memory/memory.usage_in_bytes most=$groups/memory/memory.max_usage_in_bytes
    for file in $groups/cpuacct/cpuacct.usage $groups/cpu,cpuacct/cpuacct.usage; do
      [ ! -r $file ] || read -r cpu <$file
    done
  fi
  [ $1 = new ] || [ ! -r $most ] || now=$most
  read -r memory <$now
  umask 022
  [ -n "$cpu" ] && [ -n "$memory" ] && echo "$cpu $memory" >$pipes/metrics.$1 && mv $pipes/metrics.$1 $pipes/metrics
}
# Early once, for a short task, then as often as somebody looks. Ends for good when it fails. A process that is just
# being made can lose a signal: so TERM is sent to the sleeper until it is gone, and to this one twice; if it still
# loses both, it sees that the connector has ended.
watch_use() {
  trap 'while kill $!; do sleep 0.05 || sleep 1; done; exit' TERM
  pause=2
  while [ ! -e $pipes/exit_code ]; do
    sleep $pause &
    wait $! && sample_use new || exit
    pause=10
  done
}
finish() {
  # Cut off is not complete, whatever the connector makes of it.
  [ -z "$ended" ] || code=143
  [ -z "$watcher" ] || { kill $watcher; sample_use last; } 2>/dev/null
  echo "$code" >$pipes/exit_code.new && chmod 644 $pipes/exit_code.new && mv $pipes/exit_code.new $pipes/exit_code
  [ -z "$watcher" ] || kill $watcher 2>/dev/null
  exit "$code"
}
# As PID 1 a signal without a trap does nothing at all.
ended=
watcher=
trap 'exit 143' TERM
tries=0
while [ ! -e $pipes/ready ]; do
  tries=$((tries + 1))
  if [ $tries -gt 6000 ]; then echo "the sidecar did not make the pipes" >&2; code=125; finish; fi
  sleep 0.05 2>/dev/null || sleep 1
done
# The order matters to a reader that opens the pipes one after the other: stderr first.
exec 2>$pipes/stderr >$pipes/stdout
if [ -z "$AIRBYTE_ENTRYPOINT" ]; then
  echo "AIRBYTE_ENTRYPOINT is not set in this image" >&2
  code=127
  finish
fi
# Outside a container somebody else notes it: the control group there is that of the whole machine.
if [ "$SYNCCTL_USE" != noted ]; then
  # Before the connector, so that `$!` is never that one here. It holds no pipe: their end is the connector's end.
  trap 'kill $! 2>/dev/null; exit 143' TERM
  watch_use >/dev/null 2>&1 &
  watcher=$!
fi
# A shell in the foreground would not pass the signal on: so a child, a trap, a wait.
trap 'ended=1; trap "ended=1" TERM; kill -TERM 0' TERM
(
  trap : TERM
  eval "$AIRBYTE_ENTRYPOINT \"\$@\""
) &
child=$!
code=0
wait $child || code=$?
# A trapped signal ends the first wait; the connector may need a moment longer.
while kill -0 $child 2>/dev/null; do
  code=0
  wait $child || code=$?
done
finish
