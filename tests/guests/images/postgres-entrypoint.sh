#!/usr/bin/env bash
# Does what the entrypoint of PostgreSQL's official image does, in its order: as root it gives the folders to
# `postgres` and becomes that user; in an empty folder it makes the database, by a server that listens on a Unix
# socket alone; then it becomes the server.
set -Eeo pipefail

if [ "${1:0:1}" = - ]; then
	set -- postgres "$@"
fi

set_up_folders() {
	mkdir -p "$PGDATA"
	chmod 00700 "$PGDATA"
	mkdir -p /var/run/postgresql
	chmod 03775 /var/run/postgresql
	if [ "$(id -u)" = 0 ]; then
		find "$PGDATA" \! -user postgres -exec chown postgres '{}' +
		find /var/run/postgresql \! -user postgres -exec chown postgres '{}' +
	fi
}

set_up_database() {
	if [ -z "$POSTGRES_PASSWORD" ]; then
		echo >&2 'error: the database is not initialized, and POSTGRES_PASSWORD is not set'
		exit 1
	fi
	eval 'initdb --username="$POSTGRES_USER" --pwfile=<(printf "%s\n" "$POSTGRES_PASSWORD")' "$POSTGRES_INITDB_ARGS"
	printf '\nhost all all all scram-sha-256\n' >> "$PGDATA/pg_hba.conf"
	export PGPASSWORD="$POSTGRES_PASSWORD"
	PGUSER="$POSTGRES_USER" pg_ctl -D "$PGDATA" -o "-c listen_addresses='' -p 5432" -w start
	if [ "$POSTGRES_DB" != postgres ]; then
		run_sql --dbname postgres --set db="$POSTGRES_DB" <<< 'CREATE DATABASE :"db";'
	fi
	local script
	for script in /docker-entrypoint-initdb.d/*; do
		case "$script" in
			*.sh)  echo "$0: running $script"; . "$script" ;;
			*.sql) echo "$0: running $script"; run_sql --dbname "$POSTGRES_DB" -f "$script" ;;
			*)     echo "$0: ignoring $script" ;;
		esac
	done
	PGUSER="$POSTGRES_USER" pg_ctl -D "$PGDATA" -m fast -w stop
	unset PGPASSWORD
	echo 'PostgreSQL init process complete; ready for start up.'
}

run_sql() {
	psql --set ON_ERROR_STOP=1 --no-psqlrc --username "$POSTGRES_USER" --no-password "$@"
}

if [ "$1" = postgres ]; then
	set_up_folders
	if [ "$(id -u)" = 0 ]; then
		exec gosu postgres "${BASH_SOURCE[0]}" "$@"
	fi
	export POSTGRES_USER="${POSTGRES_USER:-postgres}"
	export POSTGRES_DB="${POSTGRES_DB:-$POSTGRES_USER}"
	if [ ! -s "$PGDATA/PG_VERSION" ]; then
		set_up_database
	fi
fi
exec "$@"
