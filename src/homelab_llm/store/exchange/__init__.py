"""Exchange: one model from one store to another over any pair of byte streams; only missing blobs travel."""
