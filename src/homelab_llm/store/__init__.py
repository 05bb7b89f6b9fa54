"""Store: models on disk as an OCI image layout, and the sources they come from. Usable alone."""
