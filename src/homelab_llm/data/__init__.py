"""Data: the system database, and what is recorded in it."""
