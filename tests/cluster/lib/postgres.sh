# shellcheck shell=bash
# The PostgreSQL of the tests: its data directory, its start, and its URLs.

PG_DATA=$STATE/postgres
PG_PASSWORD_FILE=$STATE/postgres.password

pg_bin() {
    local newest
    newest=$(printf '%s\n' /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)
    dirname "$newest"
}

# The server refuses to run as root; the Debian package creates a user for it.
AS_POSTGRES=()
((EUID != 0)) || AS_POSTGRES=(setpriv --reuid postgres --regid postgres --clear-groups)

pg_listen_addresses() {
    if ! brought_cluster; then
        echo "127.0.0.1 $BRIDGE_ADDRESS"
    else
        echo "127.0.0.1 ${SYNCCTL_TEST_POD_HOST:-}"
    fi
}

# Created again if the setup was interrupted or another version created it.
ensure_pg_data() {
    local bin=$1
    if [[ -e $PG_DATA/ready && $(<"$PG_DATA/ready") == "$bin" ]]; then return; fi
    rm -rf --one-file-system "$PG_DATA"
    install -d -m 0700 "$PG_DATA"
    (umask 077 && openssl rand -hex 12 >"$PG_PASSWORD_FILE")
    local password_copy=$STATE/initdb.password # the user of the server cannot read the other file
    install -m 0600 "$PG_PASSWORD_FILE" "$password_copy"
    ((EUID != 0)) || chown postgres:postgres "$PG_DATA" "$password_copy"
    logged "$STATE/log/initdb.log" "initdb failed" "${AS_POSTGRES[@]}" "$bin/initdb" --pgdata "$PG_DATA" \
        --username postgres --pwfile "$password_copy" --auth scram-sha-256 --encoding UTF8 --locale C.UTF-8 --no-sync
    rm "$password_copy"
    # Both plain and encrypted connections: tests choose by sslmode.
    echo 'host all all all scram-sha-256' >"$PG_DATA/pg_hba.conf"
    install -m 0600 "$PKI/postgres.crt" "$PG_DATA/server.crt"
    install -m 0600 "$PKI/postgres.key" "$PG_DATA/server.key"
    ((EUID != 0)) || chown postgres:postgres "$PG_DATA"/server.*
    echo "$bin" >"$PG_DATA/ready"
}

ensure_postgres() {
    local bin addresses address
    alive postgres && return
    bin=$(pg_bin)
    ensure_pg_data "$bin"
    # The children of a killed server end a little later, and a new server refuses to start before.
    while [[ -n $(pg_processes) ]]; do sleep 0.05; done
    rm -f "$PG_DATA/postmaster.pid" # ours is dead, and its number may already belong to another process
    read -ra addresses <<<"$(pg_listen_addresses)"
    # The operating system does not crash here, so fsync may be off; a commit must still outlive a killed server,
    # so synchronous_commit stays on.
    launch postgres "${AS_POSTGRES[@]}" "$bin/postgres" -D "$PG_DATA" -p "$POSTGRES_PORT" \
        -c "listen_addresses=$(IFS=,; echo "${addresses[*]}")" -c unix_socket_directories= \
        -c max_connections=200 -c fsync=off -c full_page_writes=off \
        -c ssl=on -c ssl_cert_file=server.crt -c ssl_key_file=server.key -c log_line_prefix='%m [%p] %u '
    for address in "${addresses[@]}"; do
        wait_until postgres 60 "$bin/pg_isready" --host "$address" --port "$POSTGRES_PORT"
    done
}

pg_processes() {
    local cwd
    for cwd in /proc/[0-9]*/cwd; do
        [[ $(readlink "$cwd" 2>/dev/null) != "$PG_DATA" ]] || echo "$cwd"
    done
}

pg_url() {
    printf 'postgresql://postgres:%s@%s:%s/postgres?sslmode=disable\n' \
        "$(<"$PG_PASSWORD_FILE")" "$1" "$POSTGRES_PORT"
}
