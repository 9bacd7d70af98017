-- A role for the guard: it may read the columns by which ids and keys are known to exist, and nothing else.
--
-- Run it once in Dify's database as a superuser or as the owner of Dify's tables, then give the role a password
-- with \password dify_edge_guard in psql. Tables that your Dify does not have can be left out: the guard then says
-- which, and lets their ids pass.

CREATE ROLE dify_edge_guard LOGIN;
ALTER ROLE dify_edge_guard SET default_transaction_read_only = on;
DO $$ BEGIN
  EXECUTE format('GRANT CONNECT ON DATABASE %I TO dify_edge_guard', current_database());
  EXECUTE format('GRANT USAGE ON SCHEMA %I TO dify_edge_guard', current_schema());
END $$;

GRANT SELECT (id, type, token, created_at) ON api_tokens TO dify_edge_guard;
GRANT SELECT (id, code, updated_at) ON sites TO dify_edge_guard;
GRANT SELECT (id, created_at) ON apps TO dify_edge_guard;
GRANT SELECT (id, created_at) ON datasets TO dify_edge_guard;
GRANT SELECT (id, created_at) ON documents TO dify_edge_guard;
GRANT SELECT (id, created_at) ON document_segments TO dify_edge_guard;
GRANT SELECT (id, created_at) ON child_chunks TO dify_edge_guard;
GRANT SELECT (id, created_at) ON conversations TO dify_edge_guard;
GRANT SELECT (id, created_at) ON messages TO dify_edge_guard;
GRANT SELECT (id, created_at) ON upload_files TO dify_edge_guard;
GRANT SELECT (id, created_at) ON workflow_runs TO dify_edge_guard;
GRANT SELECT (id, created_at) ON message_annotations TO dify_edge_guard;

-- Dify has an index on created_at for messages and workflow_runs only: without one the database reads the whole table
-- to find what is new, and the guard asks so seldom that this takes at most a twentieth of the time. With millions of
-- rows in one of these tables a small index is worth it:
--
--   CREATE INDEX CONCURRENTLY ON document_segments (created_at, id);
--   CREATE INDEX CONCURRENTLY ON conversations (created_at, id);
--   CREATE INDEX CONCURRENTLY ON child_chunks (created_at, id);
--   CREATE INDEX CONCURRENTLY ON documents (created_at, id);
--   CREATE INDEX CONCURRENTLY ON upload_files (created_at, id);
