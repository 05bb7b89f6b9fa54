"""The llama.cpp worker: llama.cpp's own HTTP server on a Unix socket. Imports nothing until it runs."""
