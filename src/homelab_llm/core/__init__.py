"""Core: values, errors, files and settings that every layer may use. Imports nothing of this product but itself."""
