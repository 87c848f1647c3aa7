#!/bin/sh
# Runs a command with its secrets: where NAME_FILE names a file, NAME becomes what that file holds.
set -eu
for name in PGPASSWORD MLFLOW_TRACKING_PASSWORD MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY \
    MLFLOW_SWEEPS_PASSWORD; do
    eval "file=\${${name}_FILE:-}"
    if [ -z "$file" ]; then continue; fi
    if ! value=$(cat "$file") || [ -z "$value" ]; then
        echo "entrypoint: ${name}_FILE is $file, which is empty or cannot be read: docs/how-to/deploy.md" >&2
        exit 1
    fi
    export "$name=$value"
    unset "${name}_FILE"
done
unset name file value
exec "$@"
