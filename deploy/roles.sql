-- The databases and who may do what. The official image runs this with psql when its volume is empty, once.
\set ON_ERROR_STOP on
-- A statement that fails must not put a password into the server's log.
SET log_min_error_statement = panic;

\set sweeps_password `cat "$SWEEPS_DATABASE_PASSWORD_FILE"`
\set mlflow_password `cat "$MLFLOW_DATABASE_PASSWORD_FILE"`
\set dashboard_password `cat "$DASHBOARD_DATABASE_PASSWORD_FILE"`
SELECT '' IN (:'sweeps_password', :'mlflow_password', :'dashboard_password') AS incomplete \gset
\if :incomplete
DO $$ BEGIN RAISE 'a database password is empty or cannot be read: run deploy/make-secrets.sh, remove this volume, start again'; END $$;
\endif

CREATE ROLE sweeps LOGIN PASSWORD :'sweeps_password';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE ROLE dashboard LOGIN PASSWORD :'dashboard_password';

CREATE DATABASE sweeps OWNER sweeps;
CREATE DATABASE mlflow OWNER mlflow;
-- Unless told otherwise, PostgreSQL lets every role connect to every database and make temporary tables there.
REVOKE ALL ON DATABASE sweeps, mlflow FROM PUBLIC;
GRANT CONNECT ON DATABASE sweeps TO dashboard;

\connect sweeps
-- Tables that are yet to be made, by us and by Optuna, can be read by the dashboard, and no more.
ALTER DEFAULT PRIVILEGES FOR ROLE sweeps IN SCHEMA public GRANT SELECT ON TABLES TO dashboard;
