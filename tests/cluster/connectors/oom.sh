#!/bin/sh
# Takes memory until it is killed: give its container a limit, or the machine goes with it.
# exec makes the hungry process the connector itself, so that the exit code is that of the kill.

echo '{"type":"LOG","log":{"level":"INFO","message":"eating memory"}}'
exec awk 'BEGIN { s = "0123456789abcdef"; while (1) { s = s s; a[n++] = s } }'
