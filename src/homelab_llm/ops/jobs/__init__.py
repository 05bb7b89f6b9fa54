"""Long work on models, done by programs that the daemon starts."""
