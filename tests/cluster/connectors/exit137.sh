#!/bin/sh
# Ends with the code of a killed process without being killed: this must not be reported as a lack of memory.

echo '{"type":"LOG","log":{"level":"INFO","message":"about to end"}}'
exit 137
