#!/bin/sh
# Ends with the code of a killed process although nobody killed it: not to be taken for a lack of memory.

echo '{"type":"LOG","log":{"level":"INFO","message":"about to end"}}'
exit 137
