#!/bin/sh
# Makes the secrets of docker-compose.yml that are not there yet, in the folder named, or in ./secrets.
# Compose shows a container the file as it is here, owner and mode included, and no container runs as you: so all may
# read the files, and you alone may enter the folder.
set -eu
folder="${1:-secrets}"
mkdir -p "$folder"
chmod 700 "$folder"
for name in postgres_password sweeps_database_password mlflow_database_password dashboard_database_password \
    mlflow_admin_password mlflow_sweeps_password mlflow_secret_key; do
    file="$folder/$name.txt"
    if [ -s "$file" ]; then continue; fi
    od -An -v -tx1 -N24 /dev/urandom | tr -d ' \n' >"$file"
    chmod 444 "$file"
done
echo "secrets are in $folder: keep a copy of it where your back-ups are"
