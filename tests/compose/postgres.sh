#!/bin/sh
# PostgreSQL with what the official image makes of the same variables.
set -eu
umask 077
data=/var/lib/postgresql/data
if [ ! -s "$data/PG_VERSION" ]; then
    printf '%s' "$POSTGRES_PASSWORD" > /tmp/password
    initdb --pgdata "$data" --username "$POSTGRES_USER" --pwfile /tmp/password \
        --auth-host scram-sha-256 > /dev/null
    rm /tmp/password
    printf 'CREATE DATABASE %s;\n' "$POSTGRES_DB" |
        postgres --single -D "$data" postgres > /dev/null
fi
exec postgres -D "$data" -c listen_addresses=127.0.0.1
