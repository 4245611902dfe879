#!/bin/sh
# Run by PostgreSQL's image when its volume is new: a database and an owner each, with the passwords of the secrets' URLs.
set -eu
secrets=${SECRETS_FOLDER:-/run/secrets}
for name in tuneyard prefect mlflow; do
    file=$secrets/$name-database-url
    [ "$name" != tuneyard ] || file=$secrets/database-url
    password=$(sed -E 's#^[^:]+://[^:]+:([^@]+)@.*$#\1#' "$file")
    may=NOCREATEROLE
    [ "$name" != tuneyard ] || may=CREATEROLE  # for `tuneyard trainer-role`
    psql -v ON_ERROR_STOP=1 --username postgres --set=password="$password" <<-SQL
		CREATE ROLE $name LOGIN $may PASSWORD :'password';
		CREATE DATABASE $name OWNER $name;
		REVOKE ALL ON DATABASE $name FROM PUBLIC;
	SQL
done
psql -v ON_ERROR_STOP=1 --username postgres --dbname prefect --command 'CREATE EXTENSION IF NOT EXISTS pg_trgm'
