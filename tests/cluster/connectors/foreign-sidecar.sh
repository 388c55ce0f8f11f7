#!/bin/sh
# The Go sidecar, statement by statement, but for its destinations: a read of one stream loads nothing. What stands for its
# database, at the address in DATABASE_URL, executes one statement a line.

address=${DATABASE_URL#*@}
address=${address%%/*}
sql() { printf '%s\n' "$1" | nc "${address%:*}" "${address##*:}"; }
log() { # LEVEL MESSAGE LOGGER
    echo "$1 : $2"
    sql "INSERT INTO task_log (id, level, logger, message, sync_id, task_id, timestamp) VALUES (md5(random()::text)::uuid, '$1', '$3', \$m\$$2\$m\$, '$SYNC_ID', '$TASK_ID', now())"
}
failed='' first_error='' cancelled=''
error() { # MESSAGE: the first one counts
    [ -n "$failed" ] || first_error=$1
    failed=yes
}
field() { # NAME LINE
    printf '%s\n' "$2" | sed -n 's/.*"'"$1"'":"\([^"]*\)".*/\1/p'
}
payload() { # BEGINNING LINE
    rest=${2#"$1"}
    printf '%s\n' "${rest%\}}"
}

log INFO "Sidecar. command: $COMMAND, taskId: $TASK_ID, package: $PACKAGE:$PACKAGE_VERSION startedAt: $STARTED_AT" jitsu
if [ "$COMMAND" = read ]; then
    log INFO "files: $(cd /config && echo ./*) destination: $(field destinationType "$(cat /config/destinationConfig.json)")" jitsu
fi
exec 3<"$STDERR_PIPE_FILE"
while IFS= read -r line; do log ERRSTD "$line" "$PACKAGE"; done <&3 &
exec 4<"$STDOUT_PIPE_FILE"

# The shell's `read` ends with a signal.
trap 'cancelled=yes' TERM
stream='' events=0 bytes=0
while IFS= read -r line <&4; do
    case $line in
        '{'*'}') ;;
        *) log ERROR "$line" "$PACKAGE" ;;
    esac
    case $line in
        '{"type":"LOG"'*)
            level=$(field level "$line") message=$(field message "$line")
            case $level in ERROR | FATAL) error "$message" ;; esac
            log "$level" "$message" "$PACKAGE"
            ;;
        '{"type":"SPEC"'*)
            failed='' first_error=''
            sql "INSERT INTO source_spec as s (package, version, specs, timestamp, error ) VALUES ('$PACKAGE', '$PACKAGE_VERSION', \$s\$$(payload '{"type":"SPEC","spec":' "$line")\$s\$, '$STARTED_AT', '') ON CONFLICT ON CONSTRAINT source_spec_pkey DO UPDATE SET specs = excluded.specs, timestamp = excluded.timestamp, error=excluded.error where s.specs is null"
            ;;
        '{"type":"CONNECTION_STATUS"'*)
            failed='' first_error=''
            status=$(field status "$line")
            [ "$status" != SUCCEEDED ] || status=SUCCESS
            sql "INSERT INTO source_check (package, version, key, status, description, timestamp) VALUES ('$PACKAGE', '$PACKAGE_VERSION', '$STORAGE_KEY', '$status', \$s\$$(field message "$line")\$s\$, '$STARTED_AT') ON CONFLICT ON CONSTRAINT source_check_pkey DO UPDATE SET status = excluded.status, description=excluded.description, timestamp=excluded.timestamp"
            ;;
        '{"type":"CATALOG"'*)
            failed='' first_error=''
            sql "INSERT INTO source_catalog (package, version, key, catalog, timestamp, status, description) VALUES ('$PACKAGE', '$PACKAGE_VERSION', '$STORAGE_KEY', \$s\$$(payload '{"type":"CATALOG","catalog":' "$line")\$s\$, '$STARTED_AT', 'SUCCESS', '') ON CONFLICT ON CONSTRAINT source_catalog_pkey DO UPDATE SET catalog=excluded.catalog, timestamp = excluded.timestamp, status=excluded.status, description=excluded.description"
            ;;
        '{"type":"RECORD"'*)
            stream=$(field stream "$line") events=$((events + 1)) bytes=$((bytes + ${#line}))
            ;;
        '{"type":"TRACE"'*'"type":"ERROR"'*)
            # Only a read looks at these.
            [ "$COMMAND" != read ] || error "$(field message "$line")"
            ;;
    esac
done
exec 4<&-
[ -n "$cancelled" ] || wait

name=$(echo "$COMMAND" | tr a-z A-Z)
task="INSERT INTO source_task (sync_id, task_id, package, version, started_at, updated_at, status, description, error) VALUES ('$SYNC_ID', '$TASK_ID', '$PACKAGE', '$PACKAGE_VERSION', '$STARTED_AT', now()"
if [ -n "$cancelled" ]; then
    log WARN "Cancelling..." jitsu
    log INFO "$name CANCELLED" jitsu
    if [ "$COMMAND" = read ]; then
        streams='{"'$stream'":{"events":'$events',"bytes":'$bytes',"status":"PARTIAL","error":"Sync job was cancelled"}}'
        sql "$task, 'CANCELLED', '$streams', 'The task was cancelled') ON CONFLICT ON CONSTRAINT source_task_pkey DO UPDATE SET updated_at=excluded.updated_at, status = excluded.status, description=excluded.description, error=excluded.error"
    fi
    exit
fi
if [ -z "$failed" ]; then
    log INFO "$name SUCCESS" jitsu
    if [ "$COMMAND" = read ]; then
        streams=''
        [ -z "$stream" ] || streams='{"'$stream'":{"events":'$events',"bytes":'$bytes',"status":"SUCCESS"}}'
        sql "$task, 'SUCCESS', '$streams', '') ON CONFLICT ON CONSTRAINT source_task_pkey DO UPDATE SET updated_at=excluded.updated_at, status = excluded.status, description=excluded.description, error=excluded.error"
    fi
    exit
fi
log ERROR "$name FAILED: $first_error" jitsu
case $COMMAND in
    spec)
        sql "INSERT INTO source_spec as s (package, version, timestamp, error ) VALUES ('$PACKAGE', '$PACKAGE_VERSION', '$STARTED_AT', \$s\$$first_error\$s\$) ON CONFLICT ON CONSTRAINT source_spec_pkey DO UPDATE SET timestamp = excluded.timestamp, error=excluded.error where s.specs is null"
        ;;
    check)
        sql "INSERT INTO source_check (package, version, key, status, description, timestamp) VALUES ('$PACKAGE', '$PACKAGE_VERSION', '$STORAGE_KEY', 'FAILED', \$s\$FAILED: $first_error\$s\$, '$STARTED_AT') ON CONFLICT ON CONSTRAINT source_check_pkey DO NOTHING"
        ;;
    discover)
        sql "INSERT INTO source_catalog (package, version, key, timestamp, status, description) VALUES ('$PACKAGE', '$PACKAGE_VERSION', '$STORAGE_KEY', '$STARTED_AT', 'FAILED', \$s\$$first_error\$s\$) ON CONFLICT ON CONSTRAINT source_catalog_pkey DO UPDATE SET timestamp = excluded.timestamp, status=excluded.status, description=excluded.description"
        ;;
    read)
        sql "$task, 'FAILED', NULL, \$s\$ERROR: $first_error\$s\$) ON CONFLICT ON CONSTRAINT source_task_pkey DO UPDATE SET updated_at=excluded.updated_at, status = excluded.status, error=excluded.error"
        ;;
esac
exit 1
