"""Programs that make model files of other kinds out of model files; see README.md."""
