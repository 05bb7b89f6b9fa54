"""The command line ``mlxctl``: one file per group of verbs; ``output`` is the only place that prints."""
