# Runs the connector: waits for the pipes, redirects itself into them, forwards TERM, leaves the exit code behind.
# Arguments: the folder of the pipes, then the command word and its options. Must work in dash, busybox and bash.
pipes=$1
shift
finish() {
  # Cut off is not complete, whatever the connector makes of it.
  [ -z "$ended" ] || code=143
  echo "$code" >$pipes/exit_code.new && chmod 644 $pipes/exit_code.new && mv $pipes/exit_code.new $pipes/exit_code
  exit "$code"
}
# As PID 1 a signal without a trap does nothing at all.
ended=
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
