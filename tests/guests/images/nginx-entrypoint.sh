#!/bin/sh
# Does what the entrypoint of nginx' official image does: runs the scripts in /docker-entrypoint.d, and becomes the
# server.
set -e

if [ "$1" = nginx ] || [ "$1" = nginx-debug ]; then
	find /docker-entrypoint.d/ -follow -type f -print | sort -V | while read -r script; do
		if [ -x "$script" ]; then
			echo "$0: Launching $script"
			"$script"
		else
			echo "$0: Ignoring $script, not executable"
		fi
	done
	echo "$0: Configuration complete; ready for start up"
fi
exec "$@"
