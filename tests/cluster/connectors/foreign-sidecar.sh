#!/bin/sh
# A sidecar of another make, as far as the wire contract goes: it opens the pipes one after the other, stderr first,
# finds its documents unpacked in /config, and ends with what it saw as its last words.
exec 3<"$STDERR_PIPE_FILE"
exec 4<"$STDOUT_PIPE_FILE"
IFS= read -r first <&4
cat <&3 >/dev/null &
files=$(cd /config && echo *)
destination=$(sed 's/.*"destinationType":"\([a-z]*\)".*/\1/' /config/destinationConfig.json)
echo "command=$COMMAND files=$files destination=$destination database=${DATABASE_URL%%:*} task=$TASK_ID first=$first" \
    >/dev/termination-log
exit 1
