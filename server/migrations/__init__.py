"""The schema of the operator's journal, as Alembic migrations: one file a released schema, never changed afterwards."""
