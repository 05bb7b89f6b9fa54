"""Ops: the daemon's life, services, doctor."""
