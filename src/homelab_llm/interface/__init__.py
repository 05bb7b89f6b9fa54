"""Interface: what people use."""
