#!/bin/sh
# Answers everything at once and well: the connector for tests that are about something else.
# check fails when the configuration holds "password":"wrong"; read gives 1000 records of one stream.
# user: 1000

command=$1
shift
while [ $# -gt 0 ]; do
    case $1 in
        --config) config=$2; shift ;;
        --catalog) catalog=$2; shift ;;
        --state) state=$2; shift ;;
    esac
    shift
done

status() {
    printf '{"type":"TRACE","trace":{"type":"STREAM_STATUS","emitted_at":1700000000000.0,"stream_status":{"stream_descriptor":{"name":"items"},"status":"%s"}}}\n' "$1"
}

case $command in
    spec)
        # shellcheck disable=SC2016 # $schema is a key of JSON Schema
        echo '{"type":"SPEC","spec":{"documentationUrl":"https://example.com/instant","connectionSpecification":{"$schema":"http://json-schema.org/draft-07/schema#","title":"Instant","type":"object","required":[],"additionalProperties":true,"properties":{"user":{"type":"string"},"password":{"type":"string","airbyte_secret":true}}},"supportsIncremental":true}}'
        ;;
    check)
        if tr -d ' \n' <"$config" | grep -q '"password":"wrong"'; then
            echo '{"type":"CONNECTION_STATUS","connectionStatus":{"status":"FAILED","message":"the password is wrong"}}'
        else
            echo '{"type":"CONNECTION_STATUS","connectionStatus":{"status":"SUCCEEDED"}}'
        fi
        ;;
    discover)
        # shellcheck disable=SC2016
        echo '{"type":"CATALOG","catalog":{"streams":[{"name":"items","json_schema":{"$schema":"http://json-schema.org/draft-07/schema#","type":"object","properties":{"id":{"type":"integer"},"name":{"type":"string"}}},"supported_sync_modes":["full_refresh","incremental"],"source_defined_cursor":true,"default_cursor_field":["id"],"source_defined_primary_key":[["id"]]}]}}'
        ;;
    read)
        echo "reading $catalog from ${state:-the beginning}" >&2
        status STARTED
        status RUNNING
        awk 'BEGIN { for (id = 1; id <= 1000; id++)
            printf "{\"type\":\"RECORD\",\"record\":{\"stream\":\"items\",\"data\":{\"id\":%d,\"name\":\"item %d\"},\"emitted_at\":1700000000000}}\n", id, id }'
        echo '{"type":"STATE","state":{"type":"STREAM","stream":{"stream_descriptor":{"name":"items"},"stream_state":{"id":1000}},"sourceStats":{"recordCount":1000.0}}}'
        status COMPLETE
        ;;
    *)
        echo "unknown command $command" >&2
        exit 2
        ;;
esac
