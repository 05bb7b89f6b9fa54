#!/bin/sh
# Resolve each environment into a lock with hashes. No address of a package index is written.
set -eu
uv=$(command -v uv || echo .cache/uv/bin/uv)
compile() {
    out=$1
    shift
    "$uv" pip compile --quiet --universal --generate-hashes --no-header --no-annotate --no-emit-index-url \
        --no-emit-find-links --python-version 3.11 --output-file "requirements/$out.txt" "$@"
}
compile run pyproject.toml --group build --extra gguf --extra hub --extra mlx
compile mlx-cpu pyproject.toml --group build --extra gguf --extra hub --extra mlx --extra mlx-cpu
compile dev pyproject.toml --group build --group dev --extra postgres --extra gguf --extra hub --extra mlx --extra mlx-cpu
compile bench requirements/bench.in
compile uv requirements/uv.in
