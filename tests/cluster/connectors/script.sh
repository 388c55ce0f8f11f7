#!/bin/sh
# Runs what a test passes to it: its configuration holds {"run":"BASE64 OF A SHELL SCRIPT"}, which runs for check, discover
# and read with the command as $1 and the paths of its documents in $config, $catalog and $state (empty when not given).
# user: 1000

command=$1
shift
config='' catalog='' state=''
while [ $# -gt 0 ]; do
    case $1 in
        --config) config=$2; shift ;;
        --catalog) catalog=$2; shift ;;
        --state) state=$2; shift ;;
    esac
    shift
done
export config catalog state

if [ "$command" = spec ]; then
    echo '{"type":"SPEC","spec":{"connectionSpecification":{"type":"object","required":["run"],"properties":{"run":{"type":"string"}}}}}'
    exit
fi
# awk takes a line of any length; sed would be asked for megabytes of pattern space.
awk -F '"' '{ for (field = 2; field < NF; field++) if ($field == "run") { print $(field + 2); exit } }' "$config" |
    base64 -d >"${TMPDIR:-/tmp}/run"
exec sh "${TMPDIR:-/tmp}/run" "$command"
