"""Sources: where models come from. Each resolves a reference to files with sizes and hashes, and opens them."""
