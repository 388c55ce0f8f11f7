#!/bin/sh
# Three streams: `wide` has a row of two megabytes in its middle, `good` has four small rows, `none` has no row at all.
# With {"fails":"yes"} it ends with 1 after 20 000 rows of `many`, of which a part was sent on by then.
# user: 1000

[ "$1" = read ] || exit 2
while [ $# -gt 0 ]; do
    [ "$1" = --config ] && config=$2
    shift
done

status() { # STREAM STATUS
    printf '{"type":"TRACE","trace":{"type":"STREAM_STATUS","emitted_at":1700000000000,"stream_status":{"stream_descriptor":{"name":"%s"},"status":"%s"}}}\n' "$1" "$2"
}
records() { # STREAM FIRST LAST
    awk -v stream="$1" -v first="$2" -v last="$3" 'BEGIN { for (id = first; id <= last; id++)
        printf "{\"type\":\"RECORD\",\"record\":{\"stream\":\"%s\",\"data\":{\"id\":%d},\"emitted_at\":1700000000000}}\n", stream, id }'
}

if tr -d ' \n' <"$config" | grep -q '"fails":"yes"'; then
    status many STARTED
    records many 1 20000
    exit 1
fi
for stream in wide good none; do
    status $stream STARTED
done
records wide 1 1
records good 1 2
printf '{"type":"RECORD","record":{"stream":"wide","emitted_at":1,"data":{"id":2,"text":"'
head -c 2000000 /dev/zero | tr '\000' x
printf '"}}}\n'
records wide 3 3
records good 3 4
for stream in wide good none; do
    status $stream COMPLETE
done
