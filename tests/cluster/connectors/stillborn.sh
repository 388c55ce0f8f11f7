#!/bin/sh
# Dies before the first byte of output, as a connector does that cannot be imported.

echo 'ModuleNotFoundError: No module named stillborn' >&2
exit 1
