#!/bin/sh
# PostgreSQL with what the official image makes of the same variables.
set -eu
data=/var/lib/postgresql/data
as_postgres() { runuser -u postgres -- env PATH="$PATH" "$@"; }
if [ ! -s "$data/PG_VERSION" ]; then
    chown postgres:postgres "$data"
    printf '%s' "$POSTGRES_PASSWORD" > /tmp/password
    chown postgres /tmp/password
    as_postgres initdb --pgdata "$data" --username "$POSTGRES_USER" --pwfile /tmp/password \
        --auth-host scram-sha-256 > /dev/null
    rm /tmp/password
    printf 'CREATE DATABASE %s;\n' "$POSTGRES_DB" |
        as_postgres postgres --single -D "$data" postgres > /dev/null
fi
exec runuser -u postgres -- env PATH="$PATH" postgres -D "$data" -c listen_addresses=127.0.0.1
