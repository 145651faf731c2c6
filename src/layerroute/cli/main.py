"""``layerroute COMMAND ...``: finds the command, runs it, and turns what users can get wrong into one line.

A command is a module with

``add_arguments(parser: argparse.ArgumentParser) -> None``
    its arguments (it may also set the parser's ``description`` and ``epilog``), and
``run(arguments: argparse.Namespace) -> int``
    its work; the result is the exit code.

A module that sets ``ACCEPTS_OVERRIDES = True`` also gets ``arguments.overrides``, a ``dict[str, str]`` made of every
dotted option on the line (``--train.max_steps 29``, ``--data.source=files``), ready for
:func:`layerroute.recipe.load_recipe`.

Only the module of the command asked for is imported: ``layerroute --help`` stays free of torch.

Exit codes: 0 done, 1 a command's own "no" (a check that failed), 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import re
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from layerroute import __version__
from layerroute.cli.output import json_alone, never_fail_to_encode
from layerroute.errors import UserError, nearest
from layerroute.process import keep_freed_memory, sleep_while_idle, wait_by_default

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("layerroute.cli.train", "train the model of a recipe; resumes a run that was interrupted"),
    "calibrate": ("layerroute.cli.calibrate", "make a routed model from a pretrained one, without gradients"),
    "headroom": ("layerroute.cli.headroom", "tell how much per-token routing could win on a model"),
    "transfer": (
        "layerroute.cli.transfer",
        "tell whether routing wins on kinds of text that it was not calibrated on",
    ),
    "study": ("layerroute.cli.study", "run arms × seeds or a sweep with any number of workers, then report"),
    "compare": ("layerroute.cli.compare", "print the tables that compare runs"),
    "report": ("layerroute.cli.report", "write HTML page, Markdown paper and figures about runs"),
    "evaluate": ("layerroute.cli.evaluate", "measure a checkpoint: perplexity, accuracy, rates"),
    "retention": ("layerroute.cli.retention", "tell what layer-skipping runs keep of their base's quality"),
    "domains": (
        "layerroute.cli.domains",
        "compare a router's rates on kinds of text: prose, code, mathematics",
    ),
    "generate": ("layerroute.cli.generate", "continue a prompt; can colour each token by its route"),
    "export": ("layerroute.cli.export", "write a folder that stands alone, for transformers or for vLLM"),
    "serve": ("layerroute.cli.serve", "serve a model over HTTP, in the manner of OpenAI's API"),
    "inspect": ("layerroute.cli.inspect", "draw the token × site heatmap of a text"),
    "bench": ("layerroute.cli.bench", "prove equality, then measure speed in pairs"),
    "data": ("layerroute.cli.data", "prepare and describe data sources"),
    "validate": ("layerroute.cli.validate", "check recipes and print their key figures"),
    "doctor": ("layerroute.cli.doctor", "tell what this machine and installation can do"),
}

_OVERRIDE = re.compile(r"--([A-Za-z_]\w*(?:\.\w+)+)(?:=(.*))?", re.DOTALL)
_SETTING = re.compile(r"\b(?:calibration|skip)\.(\w+)")
_OPTION_OF = {"granularity": "router"}
_TALKATIVE = (
    "bitsandbytes.backends.cpu.ops",  # which PEFT imports: asks every CPU user for one more package
    "lm_eval",  # advises on its own command line
)
_OF_THE_MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    # A path of which a part is something else than it says.
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; ``argv`` defaults to the process's own arguments."""
    never_fail_to_encode()
    keep_freed_memory()
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except UserError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        print("layerroute: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_stdout()  # the reader is gone (`layerroute compare | head`)
        return 128 + 13
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        if error.filename is None:  # stdout's own disk may be the full one
            _drop_stdout()
        return _complain(f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror))


def _drop_stdout() -> None:
    """Point a stdout that takes no more elsewhere, or the interpreter's own flush at exit fails, too, and loudly."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str) -> int:
    print(f"layerroute: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are :class:`UserError`, one line like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.rstrip('.')}. See '{self.prog} --help'.")


def _run(argv: list[str]) -> int:
    top = _Parser(
        prog="layerroute",
        description="Per-token routing in language models: each token gets only the compute that it needs.",
        epilog="'layerroute COMMAND --help' tells more about one command.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"layerroute {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for name, (_, line) in COMMANDS.items():
        commands.add_parser(name, help=line)

    # No option before the command takes a value, so the first bare word is the command.
    position = next((i for i, word in enumerate(argv) if not word.startswith("-")), None)
    if position is None:
        _reject_unknown(top, top.parse_known_args(argv)[1])
        top.print_help(sys.stderr)
        return 2
    top.parse_known_args(argv[:position])
    name = argv[position]
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}.{nearest(name, COMMANDS)}")

    sleep_while_idle()
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(logging.ERROR)
    module, parser = command_parser(name)
    arguments = _parse(parser, module, argv[:position] + argv[position + 1 :])
    if getattr(arguments, "engine", None) == "vllm":
        wait_by_default()
    with json_alone(getattr(arguments, "json", False)):
        try:
            return int(module.run(arguments))
        except UserError as error:
            if getattr(module, "ACCEPTS_OVERRIDES", False):
                raise
            raise UserError(_in_options(str(error), parser)) from error


def _in_options(message: str, parser: argparse.ArgumentParser) -> str:
    """A message that names settings as recipes do, in the words of a command that has options for them."""

    def option(found: re.Match[str]) -> str:
        word = "--" + _OPTION_OF.get(found[1], found[1]).replace("_", "-")
        return word if word in parser._option_string_actions else found[0]

    return _SETTING.sub(option, message)


def command_parser(name: str) -> tuple[ModuleType, argparse.ArgumentParser]:
    """Import the module of one of :data:`COMMANDS` and make its parser. The manual's list of options reads it, too."""
    module_name, line = COMMANDS[name]
    module = importlib.import_module(module_name)
    parser = _Parser(
        prog=f"layerroute {name}",
        description=f"{line[0].upper()}{line[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return module, parser


def _parse(parser: argparse.ArgumentParser, module: ModuleType, words: list[str]) -> argparse.Namespace:
    overrides: dict[str, str] | None = None
    if getattr(module, "ACCEPTS_OVERRIDES", False):
        words, overrides = take_overrides(words)
    arguments, unknown = parser.parse_known_args(words)
    _reject_unknown(parser, unknown)
    if overrides is not None:
        arguments.overrides = overrides
    return arguments


def _reject_unknown(parser: argparse.ArgumentParser, unknown: list[str]) -> None:
    if not unknown:
        return
    word = unknown[0].partition("=")[0]
    known = [option for option in parser._option_string_actions if option.startswith("--")]
    hint = nearest(word, known) if word.startswith("-") else f" See '{parser.prog} --help'."
    raise UserError(f"{parser.prog}: {word!r} is not understood.{hint}")


def take_overrides(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Part dotted options from the others: ``(["r.yaml", "--train.max_steps", "29"])`` → ``(["r.yaml"], {...})``.

    The value is the text after ``=`` or else the next word, whatever it begins with, unless that is an option with a
    long name. Words after ``--`` are left alone.

    Raises:
        UserError: an override has no value, or is given twice.
    """
    rest: list[str] = []
    overrides: dict[str, str] = {}
    pending = list(words)
    while pending:
        word = pending.pop(0)
        if word == "--":
            rest += [word, *pending]
            break
        match = _OVERRIDE.fullmatch(word)
        if match is None:
            rest.append(word)
            continue
        key, value = match.groups()
        if key in overrides:
            raise UserError(f"--{key} is given twice.")
        if value is None:
            if not pending or pending[0].startswith("--"):
                raise UserError(f"--{key} needs a value: write --{key} VALUE or --{key}=VALUE.")
            value = pending.pop(0)
        overrides[key] = value
    return rest, overrides
