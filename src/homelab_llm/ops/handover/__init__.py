"""A planned restart: a running daemon hands its sockets, its lock and its workers to a new one. See README of ops."""
