#!/bin/sh
# Takes its time: check and discover need five minutes, read gives one record a second for ever and a STATE every
# five. Ends within a moment when asked to, even as PID 1, where only a trap receives the signal.

trap 'kill "$sleeper" 2>/dev/null; exit 143' TERM INT
pause() {
    sleep "$1" &
    sleeper=$!
    wait "$sleeper"
}

case $1 in
    spec)
        echo '{"type":"SPEC","spec":{"connectionSpecification":{"type":"object","properties":{}}}}'
        ;;
    check)
        pause 300
        echo '{"type":"CONNECTION_STATUS","connectionStatus":{"status":"SUCCEEDED"}}'
        ;;
    discover)
        pause 300
        echo '{"type":"CATALOG","catalog":{"streams":[{"name":"ticks","json_schema":{"type":"object","properties":{"id":{"type":"integer"}}},"supported_sync_modes":["full_refresh","incremental"]}]}}'
        ;;
    read)
        echo '{"type":"TRACE","trace":{"type":"STREAM_STATUS","emitted_at":1700000000000,"stream_status":{"stream_descriptor":{"name":"ticks"},"status":"STARTED"}}}'
        id=0
        while :; do
            id=$((id + 1))
            echo '{"type":"RECORD","record":{"stream":"ticks","data":{"id":'$id'},"emitted_at":1700000000000}}'
            if [ $((id % 5)) -eq 0 ]; then
                echo '{"type":"STATE","state":{"type":"STREAM","stream":{"stream_descriptor":{"name":"ticks"},"stream_state":{"id":'$id'}},"sourceStats":{"recordCount":5.0}}}'
            fi
            pause 1
        done
        ;;
esac
