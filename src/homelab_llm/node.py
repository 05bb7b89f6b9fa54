"""Node: one machine's platform in one process. The only place that names concrete classes."""
