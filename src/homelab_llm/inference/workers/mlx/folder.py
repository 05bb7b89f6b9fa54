"""The program that gives a stored model the shape of a folder: links with the real file names, nothing copied.

    python -m homelab_llm.inference.workers.mlx.folder --target FOLDER --file config.json=/path/of/blob …

mlx-lm finds files by name, the store keeps them by digest. The folder appears in one step; a folder whose links
point elsewhere or nowhere (its blobs were removed and fetched again) is made anew.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from homelab_llm.core.atomic import publish, sync_folder
from homelab_llm.core.errors import BadModelFile, HomelabError
from homelab_llm.core.locks import locked


def link_folder(files: Mapping[str, Path], target: Path) -> None:
    """Make ``target`` hold a link for every file; does nothing when it does.

    Raises:
        BadModelFile: a name that would leave the folder, or a file that is not there.
        OSError: as the system says.
    """
    for name, path in files.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or not pure.parts or any(part in ("..", ".") for part in pure.parts):
            raise BadModelFile(f"{name[:80]!r} is not a file name inside a model", file=name[:80])
        if not path.is_file():
            raise BadModelFile(f"the file {name[:80]!r} of the model is missing from the store", file=name[:80])
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f"{target.name}.lock"), wait_s=60):
        if _holds(files, target):
            return
        shutil.rmtree(target, ignore_errors=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            for name, path in files.items():
                link = temporary / name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
            sync_folder(temporary)
            publish(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _holds(files: Mapping[str, Path], target: Path) -> bool:
    return (
        all((link := target / name).is_symlink() and link.readlink() == path.resolve() for name, path in files.items())
        and target.is_dir()
    )


def main(arguments: list[str] | None = None) -> int:
    """Link as the arguments say; the exit status."""
    parser = argparse.ArgumentParser(prog="mlx-folder", description="Make a folder of links to a model's files.")
    parser.add_argument("--target", type=Path, required=True, help="the folder to make")
    parser.add_argument("--file", action="append", required=True, metavar="NAME=PATH", help="one file of the model")
    options = parser.parse_args(arguments)
    pairs = [item.partition("=") for item in options.file]
    try:
        link_folder({name: Path(path) for name, _, path in pairs}, options.target)
    except (HomelabError, OSError) as error:
        print(f"error: the model's folder cannot be made: {error}", file=sys.stderr)  # noqa: T201 — a worker's log
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
