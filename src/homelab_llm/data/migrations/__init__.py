"""Revisions of the system database, one file each, applied in order by ``data/migrate.py``."""
