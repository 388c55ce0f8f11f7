#!/bin/sh
# Is in an image that does not say how to start it: AIRBYTE_ENTRYPOINT is not set.
# no-entrypoint

echo 'this must never run: the image sets no entry point' >&2
exit 3
