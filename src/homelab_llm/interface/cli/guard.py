"""What stands around every call: errors become a message, a hint and an exit code; never a traceback unasked."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

import click

from homelab_llm.core import errors
from homelab_llm.interface.cli import exit_codes
from homelab_llm.interface.cli.invocation import Invocation
from homelab_llm.interface.cli.output import Output, OutputClosed


def run_command_line(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """``mlxctl`` with these arguments; returns the exit code."""
    from homelab_llm.interface.cli.tree import mlxctl

    return guarded(mlxctl, "mlxctl", argv, environ)


def guarded(command: click.Command, program: str, argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a click command; whatever it raises is printed once and becomes an exit code."""
    output = Output.of_process(environ, json="--json" in argv)
    invocation = Invocation(output, environ)

    def run() -> int:
        value = command.main(args=list(argv), prog_name=program, standalone_mode=False, obj=invocation)
        output.finish()
        return value if isinstance(value, int) else exit_codes.OK

    try:
        return _translated(run, invocation)
    except OutputClosed:
        return _reader_gone()


def _translated(run: Callable[[], int], invocation: Invocation) -> int:
    try:
        return run()
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as wrong:
        code = _usage(wrong, invocation.output)
        return code if invocation.expected_version is None else exit_codes.FAR_USAGE
    except click.ClickException as wrong:
        error: errors.HomelabError = errors.InvalidInput(wrong.format_message())
    except (click.Abort, KeyboardInterrupt):
        error = errors.Cancelled("interrupted")
    except errors.HomelabError as raised:
        error = raised
    except OSError as raised:
        error = _from_system(raised)
    except OutputClosed:
        raise
    except Exception as raised:  # noqa: BLE001 — the outermost loop of the program
        if invocation.verbosity:
            traceback.print_exc()
        error = errors.InternalError(
            f"a defect of this program: {type(raised).__name__}: {raised}", hint="run it again with -v to see where"
        )
    code = exit_codes.exit_code_of(type(error))
    invocation.output.error(error, code)
    return code


def _usage(wrong: click.UsageError, output: Output) -> int:
    command = wrong.ctx.command_path if wrong.ctx else "mlxctl"
    if isinstance(wrong, click.exceptions.NoArgsIsHelpError) and not output.json:
        output.note(wrong.format_message())
        return exit_codes.USAGE
    hint = getattr(wrong, "hint", f"{command} --help")
    output.error(errors.InvalidInput(wrong.format_message(), hint=hint), exit_codes.USAGE)
    return exit_codes.USAGE


def _from_system(error: OSError) -> errors.HomelabError:
    """A refusal of the operating system, which names the file itself."""
    where = f": {error.filename}" if error.filename else ""
    text = f"{error.strerror or error}{where}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.DiskFull(text, hint="mlxctl prune")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return errors.Denied(text)
    if error.errno == errno.ENOENT:
        return errors.NotFound(text)
    if error.errno == errno.ENAMETOOLONG:
        return errors.InvalidInput(text)
    return errors.HomelabError(text)


def _reader_gone() -> int:
    """Point standard output at nothing, so that the interpreter's last flush does not complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    return exit_codes.PIPE_CLOSED
