"""The schema of the ledger's file, as Alembic migrations: one file a released schema, never changed afterwards."""
