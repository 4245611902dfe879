#!/bin/sh
# Makes the secret files of compose.yaml in deploy/secrets (or the folder that is named); what is there stays.
set -eu
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 0700 "$folder"

random() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

make() {
    [ -e "$folder/$1" ] || printf '%s' "$2" > "$folder/$1"
    chmod 0444 "$folder/$1"  # the folder lets nobody in; containers get single files of it, as a user of their own
}

make postgres-password "$(random)"
make database-url "postgresql+psycopg2://tuneyard:$(random)@postgres:5432/tuneyard"
make prefect-database-url "postgresql+asyncpg://prefect:$(random)@postgres:5432/prefect"
make mlflow-database-url "postgresql+psycopg2://mlflow:$(random)@postgres:5432/mlflow"
make prefect-auth "tuneyard:$(random)"
make mlflow-password "$(random)"
make mlflow-session-key "$(random)"
make s3-key ''  # empty files set nothing: fill these in for a store in S3
make s3-secret ''
make trainer-database-url ''  # filled in by `tuneyard trainer-role`
chmod 0644 "$folder/trainer-database-url"
