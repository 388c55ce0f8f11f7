-- A role for the sidecars, whose database URL is in the Secret of every task: it may do what they do and nothing else. Set it as
-- SYNCCTL_SIDECAR_DATABASE_URL, once the service has created the tables. Destinations have credentials of their own.
--
--   psql "$SYNCCTL_DATABASE_URL" -v ON_ERROR_STOP=1 -v role=syncctl_sidecar -v results=newjitsu -v own=syncctl \
--       -v database=jitsu -f deploy/sidecar-role.sql
--
-- `results` is the schema of that URL, `own` that of SYNCCTL_OWN_SCHEMA. Then give the role a password: \password syncctl_sidecar

CREATE ROLE :"role" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION CONNECTION LIMIT -1;
-- Where PUBLIC may not connect.
GRANT CONNECT ON DATABASE :"database" TO :"role";

GRANT USAGE ON SCHEMA :"results" TO :"role";
GRANT SELECT, INSERT, UPDATE ON :"results".source_spec, :"results".source_check, :"results".source_catalog TO :"role";
GRANT SELECT, INSERT, UPDATE ON :"results".source_task TO :"role";
-- A state that covers others replaces their rows.
GRANT SELECT, INSERT, UPDATE, DELETE ON :"results".source_state TO :"role";
-- SELECT of the id alone: a repeated insert must not fail. No sidecar reads the lines of others.
GRANT INSERT, SELECT (id) ON :"results".task_log TO :"role";

GRANT USAGE ON SCHEMA :"own" TO :"role";
GRANT SELECT, INSERT, UPDATE, DELETE ON :"own".attempt, :"own".source_config TO :"role";
GRANT SELECT ON :"own".task TO :"role";
GRANT SELECT, INSERT, UPDATE ON :"own".connector_spec TO :"role";
