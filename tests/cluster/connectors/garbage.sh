#!/bin/sh
# Writes everything but a message, ends in the middle of a line, and claims success.

echo 'starting up, please wait'
printf 'caf\351 \377\376 \300\200 is not UTF-8\n'
echo '{"type":"SPEC","spec":{"connectionSpecification":'
echo '}'
echo '["a","list"]'
echo '42'
echo 'null'
echo ''
echo '{"no":"type"}'
echo '{"type":"NOSUCHTYPE","nosuchtype":{}}'
printf '\033[31mred\033[0m \000 and a zero byte\r\n'
echo 'something on stderr too' >&2
printf '{"type":"RECORD","record":{"stream":"items","data":{"id":1}'
