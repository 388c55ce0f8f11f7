#!/bin/sh
# Ignores TERM and INT and never answers: only SIGKILL ends it.

trap '' TERM INT
echo 'not listening' >&2
while :; do
    sleep 1 # a child inherits that the signals are ignored
done
