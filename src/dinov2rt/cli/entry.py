"""From `sys.argv` to an exit status: the one place where errors become messages."""

import contextlib
import io
import os
import re
import sys
import traceback
import warnings
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dinov2rt._version import __version__
from dinov2rt.cli.bench import BENCH
from dinov2rt.cli.build import BUILD
from dinov2rt.cli.doctor import DOCTOR
from dinov2rt.cli.export import EXPORT
from dinov2rt.cli.heads.predict import PREDICT
from dinov2rt.cli.heads.train_head import TRAIN_HEAD
from dinov2rt.cli.info import INFO
from dinov2rt.cli.knn import KNN
from dinov2rt.cli.output import a_line_a_minute, complain, to_json, write_result
from dinov2rt.cli.report import REPORT
from dinov2rt.cli.run import RUN
from dinov2rt.cli.search import SEARCH
from dinov2rt.cli.triton import TRITON
from dinov2rt.cli.verb import BAD_INPUT, INTERRUPTED, TERMINATED, Outcome, Verb
from dinov2rt.cli.verify import VERIFY
from dinov2rt.errors import BackendError, Dinov2rtError, InputError
from dinov2rt.foreign import one_line
from dinov2rt.optional import require
from dinov2rt.signals import Terminated, terminable

_SHELLS = ("bash", "zsh", "tcsh")


def _add_completion_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "shell",
        choices=_SHELLS,
        help="the shell; for bash: dinov2rt completion bash > "
        "~/.local/share/bash-completion/completions/dinov2rt",
    )


def _complete(arguments: Namespace) -> Outcome:
    shtab = require("shtab", extra="completion", purpose="shell completion")
    script = shtab.complete(make_parser(), shell=arguments.shell)
    return Outcome({"shell": arguments.shell, "script": script}, script)


COMPLETION = Verb(
    "completion", "print a script that completes commands", _add_completion_arguments, _complete
)

VERBS: tuple[Verb, ...] = (
    EXPORT,
    BUILD,
    VERIFY,
    RUN,
    PREDICT,
    SEARCH,
    KNN,
    TRAIN_HEAD,
    TRITON,
    BENCH,
    REPORT,
    INFO,
    DOCTOR,
    COMPLETION,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default the process's own.

    Returns:
        The exit status: 0 done, 1 a check failed, 2 bad usage or bad input, 130 interrupted,
        143 terminated.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _replace_closed_streams()
    _allow_any_file_name()
    as_json, debug = "--json" in argv, "--debug" in argv
    try:
        with terminable():
            outcome = _outcome(argv)
    except (Exception, KeyboardInterrupt) as error:  # the last place where it can become a line
        outcome = _failure(error, debug=debug)
    try:
        write_result(to_json(outcome.document) if as_json else outcome.text)
    except OSError as error:
        return _failure(error, debug=debug).status
    return outcome.status


def _outcome(argv: list[str]) -> Outcome:
    if not set(argv) - {"--json", "--debug"}:
        return Outcome(
            {"verbs": [verb.name for verb in VERBS]}, make_parser().format_help().rstrip()
        )
    try:
        arguments = make_parser().parse_args(
            _join_negative(argv), Namespace(json=False, debug=False)
        )
    except SystemExit:  # --help and --version have printed what they had to say
        write_result("")
        raise
    # Output of libraries must not get into the document.
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(), a_line_a_minute():
        warnings.showwarning = _show_warning
        outcome: Outcome = arguments.run(arguments)
    return outcome


def _failure(error: BaseException, *, debug: bool) -> Outcome:
    if debug:
        traceback.print_exception(error)
    kind, message = type(error).__name__, str(error)
    status = BAD_INPUT
    if isinstance(error, KeyboardInterrupt):
        message, status = "interrupted", INTERRUPTED
        if isinstance(error, Terminated):
            message, status = "terminated", TERMINATED
    elif isinstance(error, Dinov2rtError):
        status = error.exit_status
    elif isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{error.strerror}"
    elif (lack := _lack(error)) is not None:
        message = lack
    else:
        message = f"unexpected {kind}: {message}; run it again with --debug, and report it"
    for line in _lines(error, message):
        complain(line if isinstance(error, KeyboardInterrupt) else f"error: {line}")
    document = {"error": {"type": kind, "message": one_line(message)}}
    return Outcome(document, text="", status=status)


def _lack(error: BaseException) -> str | None:
    """What this machine did not give, if that is the error; None if it is another one."""
    if isinstance(error, MemoryError):
        return (
            f"memory ran out ({str(error) or 'no more is given'}); use smaller batches, fewer "
            "threads and decoders, or raise the limit (ulimit -v)"
        )
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return (
            "the system starts no more threads; use fewer threads and decoders, or raise the "
            "limits of processes and memory (ulimit -u, ulimit -v)"
        )
    return None


def _lines(error: BaseException, message: str) -> list[str]:
    """The lines of an error: one, or one for each backend that was tried."""
    if isinstance(error, BackendError) and len(error.reasons) > 1:
        return [error.summary, *error.reasons]
    return [message]


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    complain(f"warning: {message}")


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see: {self.prog} --help")


def make_parser() -> ArgumentParser:
    """The whole command line, with each verb's own options."""
    # Suppressed defaults let the two stand before the verb as well as after it.
    shared = _Parser(add_help=False, argument_default=SUPPRESS)
    shared.add_argument("--json", action="store_true", help="print one JSON document")
    shared.add_argument("--debug", action="store_true", help="show where an error came from")
    parser = _Parser(
        prog="dinov2rt",
        description="DINOv2 backbones: exported exactly, run without torch.",
        parents=[shared],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dinov2rt {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        own = verbs.add_parser(
            verb.name,
            help=verb.help,
            description=f"{verb.help[0].upper()}{verb.help[1:]}.",
            parents=[shared],
            allow_abbrev=False,
        )
        verb.add_arguments(own)
        own.set_defaults(run=verb.run)
    return parser


def _join_negative(argv: list[str]) -> list[str]:
    """Turn `--layers -1,5` into `--layers=-1,5`, since argparse takes `-1,5` for an option."""
    joined: list[str] = []
    for argument in argv:
        if joined and re.match(r"-\d", argument) and re.match(r"--\w", joined[-1]):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _replace_closed_streams() -> None:
    """Python has no stream at all where the caller closed one, as with `>&-`."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # until exit
            setattr(sys, name, nowhere)


def _allow_any_file_name() -> None:
    """A file name that the terminal's encoding lacks is escaped rather than fatal."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
