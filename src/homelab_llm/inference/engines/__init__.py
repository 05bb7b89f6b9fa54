"""Engines: what runs which model and how to start it. Data only."""
