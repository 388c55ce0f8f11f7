#!/bin/sh
# Behaves in one of many odd ways, which its configuration chooses: {"mode":"…","report":"HOST PORT"}, on one line. What it reports goes to a TCP listener of the test: it is seen even when the Pod
# and all that it wrote are gone.
# user: 1000

command=$1
shift
state=none
while [ $# -gt 0 ]; do
    case $1 in
        --config) config=$2; shift ;;
        --catalog) catalog=$2; shift ;;
        --state) state=$2; shift ;;
        --debug) debug=yes ;;
    esac
    shift
done
setting() { sed -n 's/.*"'"$1"'": *"\([^"]*\)".*/\1/p' "$config" 2>/dev/null; }
report() {
    [ -n "$(setting report)" ] || return 0
    for try in 1 2 3 4 5; do
        # shellcheck disable=SC2046 # host and port are two words
        echo "$1" | nc -w 3 $(setting report) && return 0
        echo "try $try of reporting $1 failed" >&2
        sleep 0.2
    done
}

records() { # STREAM FIRST LAST
    awk -v stream="$1" -v first="$2" -v last="$3" 'BEGIN { for (id = first; id <= last; id++)
        printf "{\"type\":\"RECORD\",\"record\":{\"stream\":\"%s\",\"data\":{\"id\":%d},\"emitted_at\":1700000000000}}\n", stream, id }'
}
state_of() { # STREAM ID
    echo '{"type":"STATE","state":{"type":"STREAM","stream":{"stream_descriptor":{"name":"'"$1"'"},"stream_state":{"id":'"$2"'}}}}'
}
status_of() { # STREAM STATUS
    echo '{"type":"TRACE","trace":{"type":"STREAM_STATUS","emitted_at":1700000000000.5,"stream_status":{"stream_descriptor":{"name":"'"$1"'"},"status":"'"$2"'"}}}'
}
log() { echo '{"type":"LOG","log":{"level":"'"$1"'","message":"'"$2"'"}}'; }

# Text as the inside of a JSON string.
quoted() { tr -d '\r' | tr '\t\033\001' '   ' | sed 's/\\/\\\\/g; s/"/\\"/g'; }

case $command-$(setting mode) in
    read-twins)
        # As the Python CDK does it: a failed stream still sends its state.
        status_of good STARTED
        status_of bad STARTED
        for id in 1 2 3 4 5 6 7 8 9 10; do
            records good $id $id
            records bad $id $id
        done
        echo '{"type":"TRACE","trace":{"type":"ERROR","emitted_at":1700000000000,"error":{"message":"the API answered 500","failure_type":"system_error","stream_descriptor":{"name":"bad"}}}}'
        status_of bad INCOMPLETE
        state_of bad 10
        records good 11 20
        state_of good 20
        status_of good COMPLETE
        log FATAL 'one stream failed'
        exit 1
        ;;
    read-global)
        records one 1 5
        records two 1 7
        echo '{"type":"STATE","state":{"type":"GLOBAL","global":{"shared_state":{"lsn":9007199254740993},"stream_states":[{"stream_descriptor":{"name":"one"},"stream_state":{"id":5}},{"stream_descriptor":{"name":"two"}}]}}}'
        report "state $(cat "$state" 2>/dev/null)"
        ;;
    read-legacy)
        records one 1 5
        echo '{"type":"STATE","state":{"data":{"one":{"id":5}}}}'
        ;;
    read-chatty)
        # Everything that a read need not know, in between.
        echo 'plain text before anything'
        echo '{"type":"DEBUG","message":"a debug line","data":{}}'
        echo '{"type":"CONTROL","control":{"type":"CONNECTOR_CONFIG","emitted_at":1700000000000,"connectorConfig":{"config":{"token":"fresh-token"}}}}'
        echo '{"type":"TRACE","trace":{"type":"ESTIMATE","emitted_at":1.5,"estimate":{"name":"one","type":"STREAM","row_estimate":3}}}'
        echo '{"type":"TRACE","trace":{"type":"ANALYTICS","emitted_at":1,"analytics":{"type":"x","value":"y"}}}'
        echo '{"type":"NOSUCHTYPE"}'
        records unselected 1 3
        log DEBUG 'for developers only'
        log WARN 'something to think about'
        log INFO "the password is $(setting password)"
        echo "on stderr the password is $(setting password)" >&2
        [ -z "$debug" ] || log INFO 'debug was asked for'
        records one 1 3
        state_of one 3
        ;;
    read-renew)
        # A token that is good for one run: the next one is asked to be kept as soon as it is there.
        token=$(setting token)
        echo '{"type":"CONTROL","control":{"type":"CONNECTOR_CONFIG","emitted_at":1700000000000,"connectorConfig":{"config":{"mode":"renew","token":"'"$token"'-next"}}}}'
        log INFO "logged in with $token, the next one is $token-next"
        echo '{"type":"RECORD","record":{"stream":"one","data":{"id":'"${#token}"',"token":"'"$token"'"},"emitted_at":1700000000000}}'
        [ "$token" != token-next ] || exit 1 # what was renewed counts, whatever came after
        ;;
    read-incomplete)
        # What happens when the catalog asks for a stream that the source does not have.
        status_of one INCOMPLETE
        ;;
    read-quiet)
        # No status, no state: the exit code alone says that it is all.
        records one 1 4
        ;;
    read-endless)
        # A line that is too long, between two good ones.
        records one 1 1
        printf '{"type":"RECORD","record":{"stream":"one","emitted_at":1,"data":{"id":2,"text":"'
        head -c 140000000 /dev/zero | tr '\000' x
        printf '"}}}\n'
        records one 3 3
        ;;
    read-steady)
        # 4000 rows in eight seconds, with a state every 500.
        status_of one STARTED
        last=0
        while [ $last -lt 4000 ]; do
            records one $((last + 1)) $((last + 500))
            last=$((last + 500))
            state_of one $last
            sleep 1
        done
        status_of one COMPLETE
        ;;
    read-look)
        # Sends all that it can see as rows.
        {
            env
            id
            documents=${config%/*}
            for folder in "$documents" "$documents/../secrets" "$documents/../pipes" /var/run/secrets /run/secrets; do
                ls -l "$folder" 2>&1
            done
            grep -o ' /[^ ]* ' /proc/mounts
            cat "$documents"/*
        } >"${TMPDIR:-/tmp}/seen"
        quoted <"${TMPDIR:-/tmp}/seen" | awk '{ printf "{\"type\":\"RECORD\",\"record\":{\"stream\":\"one\",\"emitted_at\":1,\"data\":{\"id\":%d,\"line\":\"%s\"}}}\n", NR, $0 }'
        ;;
    *-signals)
        trap 'report TERM; exit 143' TERM
        status_of one STARTED
        records one 1 1
        report started
        while :; do
            sleep 1 &
            wait $!
        done
        ;;
    check-*)
        echo '{"type":"CONNECTION_STATUS","connectionStatus":{"status":"FAILED","message":"cannot log in with '"$(setting password)"'"}}'
        echo '{"type":"CONNECTION_STATUS","connectionStatus":{"status":"SUCCEEDED","message":"too late: the first one counts"}}'
        ;;
    discover-*)
        echo '{"type":"LOG","log":{"level":"FATAL","message":"config"}}'
        echo '{"type":"TRACE","trace":{"type":"ERROR","emitted_at":1,"error":{"message":"the configuration has no account","failure_type":"config_error"}}}'
        exit 1
        ;;
    *)
        echo "unknown command $command or mode $(setting mode), catalog ${catalog:-none}" >&2
        exit 2
        ;;
esac
