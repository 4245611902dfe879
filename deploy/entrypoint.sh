#!/bin/sh
# Sets variables from secret files, then becomes the command: a file /run/secrets/NAME sets NAME, if NAME is not set
# and the file not empty.
set -eu
for file in "${SECRETS_FOLDER:-/run/secrets}"/*; do
    name=${file##*/}
    case $name in
        [!A-Z]* | *[!A-Z0-9_]*) continue ;;
    esac
    [ -f "$file" ] && [ -s "$file" ] || continue
    if eval "[ -z \"\${$name+set}\" ]"; then
        value=$(cat "$file") || { echo "$file can't be read by user $(id -u)" >&2; exit 1; }
        export "$name=$value"
    fi
done
exec "$@"
