#!/bin/sh
# MariaDB with what the official image makes of the same variables.
set -eu
data=/var/lib/mysql
if [ ! -d "$data/mysql" ]; then
    mariadb-install-db --datadir="$data" --skip-test-db > /dev/null
fi
cat > /run/mysqld/init.sql <<SQL
CREATE DATABASE IF NOT EXISTS $MARIADB_DATABASE;
CREATE USER IF NOT EXISTS '$MARIADB_USER'@'%' IDENTIFIED BY '$MARIADB_PASSWORD';
GRANT ALL ON $MARIADB_DATABASE.* TO '$MARIADB_USER'@'%';
SQL
exec mariadbd --no-defaults --datadir="$data" --socket=/run/mysqld/mysqld.sock \
    --bind-address=127.0.0.1 --skip-name-resolve --init-file=/run/mysqld/init.sql "$@"
