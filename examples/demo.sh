#!/bin/sh
# Starts a server, aligns the examples into out/, shows the result, stops the server. Run by `make demo`.
set -eu
bin=$1
cd "$(dirname "$0")/.."

room=$(mktemp -d)
trap '"$bin/align-server" stop --socket "$room/align.sock" || true; rm -rf "$room"' EXIT

echo "== align-server start"
ALIGN_SERVER=$("$bin/align-server" start --socket "$room/align.sock")
export ALIGN_SERVER

echo "== align-client align examples -o out"
"$bin/align-client" align examples -o out --report out/report.json && status=0 || status=$?

echo "== the word times in out/ (the bullets of CHAT are shown as •)"
for file in out/*.cha; do
    echo "-- $file"
    grep -E '^(\*|%wor)' "$file" | tr '\025' '|' | sed 's/|/•/g'
done

echo "== align-server status"
"$bin/align-server" status --socket "$room/align.sock"
exit "$status"
