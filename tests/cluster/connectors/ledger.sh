#!/bin/sh
# A source that grows and resumes, slowly enough to be killed in its middle. What it has is a pure function of its
# configuration, on one line: {"kind":"stream|global","until":N,"edition":N,"batch":N,"pause":"SECONDS"}
#   accounts  changes 1..until of a growing set of accounts: each is a row with the account's id
#   entries   entries 1..until: ids that never come twice
#   rates     a table of 1200 rows that each edition replaces as a whole
# Their rows are interleaved. It goes on after the states that it is given: one for each stream, or one for all.
# user: 1000

command=$1
shift
state=/dev/null
while [ $# -gt 0 ]; do
    case $1 in
        --config) config=$2; shift ;;
        --catalog) shift ;;
        --state) state=$2; shift ;;
    esac
    shift
done
[ "$command" = read ] || { echo "unknown command $command" >&2; exit 2; }

setting() { sed -n 's/.*"'"$1"'":"\{0,1\}\([^",}]*\).*/\1/p' "$config"; }
position() { # of a key that only one state has
    found=$(sed -n 's/.*"'"$1"'": *\([0-9]*\).*/\1/p' "$state")
    echo "${found:-0}"
}
least() { echo $(($1 < $2 ? $1 : $2)); }

status_of() { # STREAM STATUS
    echo '{"type":"TRACE","trace":{"type":"STREAM_STATUS","emitted_at":1700000000000,"stream_status":{"stream_descriptor":{"name":"'"$1"'"},"status":"'"$2"'"}}}'
}
state_of() { # STREAM DOCUMENT
    echo '{"type":"STATE","state":{"type":"STREAM","stream":{"stream_descriptor":{"name":"'"$1"'"},"stream_state":'"$2"'}}}'
}
state_of_all() { # POSITION
    echo '{"type":"STATE","state":{"type":"GLOBAL","global":{"shared_state":{"ledger_at":'"$1"'},"stream_states":[{"stream_descriptor":{"name":"accounts"},"stream_state":{}},{"stream_descriptor":{"name":"entries"},"stream_state":{}}]}}}'
}

# The rows after the first positions up to the second ones, one of each stream in turn.
rows() { # ACCOUNTS ACCOUNTS ENTRIES ENTRIES RATES RATES
    awk -v a="$1" -v a_end="$2" -v e="$3" -v e_end="$4" -v r="$5" -v r_end="$6" -v edition="$edition" '
        function record(stream, data) {
            printf "{\"type\":\"RECORD\",\"record\":{\"stream\":\"%s\",\"emitted_at\":1700000000000,\"data\":{%s}}}\n", stream, data
        }
        # Two changes of one account come within one batch, too.
        function account(s) { return (s * 7919) % (61 + int(s / 50)) + 1 }
        BEGIN {
            while (a < a_end || e < e_end || r < r_end) {
                if (a < a_end) {
                    a++
                    record("accounts", sprintf("\"id\":%d,\"version\":%d,\"balance\":%d.%02d,\"owner\":\"Zo\303\253 %d\",\"changed_at\":\"2024-01-01T%02d:%02d:%02dZ\",\"tags\":{\"even\":%s,\"change\":%d}",
                        account(a), a, a % 10007, a % 100, a, int(a / 3600) % 24, int(a / 60) % 60, a % 60, a % 2 ? "false" : "true", a))
                }
                if (e < e_end) {
                    e++
                    record("entries", sprintf("\"id\":%d,\"account\":%d,\"cents\":%d,\"note\":\"entry %d\\nsaid \\\"%d\\\"\"", e, account(e), (e * 31) % 9973, e, e % 7))
                }
                if (r < r_end) {
                    r++
                    record("rates", sprintf("\"id\":%d,\"edition\":%d,\"rate\":%d", r, edition, (r * 37) % 1000))
                }
            }
        }'
}

all_rates=1200
kind=$(setting kind)
until=$(setting until)
edition=$(setting edition)
batch=$(setting batch)
pause=$(setting pause)
if [ "$kind" = global ]; then
    accounts=$(position ledger_at)
    entries=$accounts
    # The state of all streams can only be kept once the table that is replaced is complete.
    rates_batch=400
else
    accounts=$(position accounts_at)
    entries=$(position entries_at)
    rates_batch=$batch
fi
rates=0
echo "reading $kind $accounts $entries to $until" >&2
for stream in accounts entries rates; do status_of $stream STARTED; done

round=0
accounts_open=yes
entries_open=yes
rates_open=yes
while [ -n "$accounts_open$entries_open$rates_open" ]; do
    round=$((round + 1))
    a=$(least $((accounts + batch)) "$until")
    e=$(least $((entries + batch)) "$until")
    r=$(least $((rates + rates_batch)) $all_rates)
    rows "$accounts" "$a" "$entries" "$e" $rates "$r"
    accounts=$a entries=$e rates=$r
    [ $((round % 5)) -ne 0 ] || echo '{"type":"LOG","log":{"level":"INFO","message":"at '"$accounts and $entries"'"}}'
    if [ -n "$rates_open" ] && [ $rates -eq $all_rates ]; then
        # A source with one state for all has no other.
        [ "$kind" = global ] || state_of rates '{"__ab_no_cursor_state_message":true}'
        status_of rates COMPLETE
        rates_open=
    fi
    if [ "$kind" = global ]; then
        state_of_all "$accounts"
    else
        [ -z "$accounts_open" ] || state_of accounts '{"accounts_at":'"$accounts"'}'
        # Not at each batch: what came since the last state comes again after a kill.
        [ -z "$entries_open" ] || [ $((round % 3)) -ne 0 ] || state_of entries '{"entries_at":'"$entries"'}'
    fi
    if [ -n "$accounts_open" ] && [ "$accounts" -eq "$until" ]; then
        status_of accounts COMPLETE
        accounts_open=
    fi
    if [ -n "$entries_open" ] && [ "$entries" -eq "$until" ]; then
        # A state may come after COMPLETE, too.
        status_of entries COMPLETE
        [ "$kind" = global ] || state_of entries '{"entries_at":'"$entries"'}'
        entries_open=
    fi
    [ "$pause" = 0 ] || sleep "$pause"
done
