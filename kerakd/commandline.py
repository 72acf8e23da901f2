"""What every program here shares: flags from the fields of a dataclass, files that it may write, and how it ends."""

import dataclasses
import errno
import os
import pathlib
import re
import sys
import tempfile
import typing

import tensorflow as tf
from absl import flags

from kerakd.errors import BadInput

REMEDIES = {  # for what the system refuses
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "change its permissions, or take another"),
}


def flag(default, help, choices=None, file=False):
    """A field of a dataclass that is a flag of its name.

    choices: what --help lists; the dataclass checks them. file: whether it takes a model file beside them.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "file": file})


def check_new(name, path, suffixes, overwrite):
    """A file that a program may write.

    Raises: BadInput for another suffix, a folder that is not there or can't be written, a file that is there and may not be replaced.
    """
    received, path = path, pathlib.Path(path)
    if path.suffix not in suffixes or path.is_dir():
        raise BadInput(f"--{name}: expected a {' or '.join(suffixes)} file, received {received!r}; give --{name}=NAME{suffixes[0]}")
    if not path.parent.is_dir():
        raise BadInput(f"--{name}: expected a folder that exists, received {path.parent}; make it first")
    if path.exists() and not overwrite:
        raise BadInput(f"--{name}: expected a new file, received {received}, which exists; give --overwrite to replace it, or another --{name}")
    try:  # before there is anything to lose
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise BadInput(f"--{name}: expected a folder that can be written, received {path.parent} ({error.strerror}); take another") from error


class _Optional:
    """A number that a later flag takes back: --name= is None."""

    def parse(self, argument):
        return None if argument == "" else super().parse(argument)


class _OptionalFloat(_Optional, flags.FloatParser):
    pass


class _OptionalInteger(_Optional, flags.IntegerParser):
    pass


_OPTIONAL = {typing.Optional[float]: _OptionalFloat, typing.Optional[int]: _OptionalInteger}
_DEFINE = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string, tuple: flags.DEFINE_multi_string}


def define(flag_values, cls):
    """Defines a flag for each field of `cls` on `flag_values`: nothing global."""
    for field in dataclasses.fields(cls):
        choices = field.metadata["choices"]
        text = field.metadata["help"] + (f" ({', '.join(choices)})" if choices else "")
        if field.type in _OPTIONAL:
            flags.DEFINE(_OPTIONAL[field.type](), field.name, field.default, text, flag_values=flag_values)
        else:
            _DEFINE[field.type](field.name, list(field.default) if field.type is tuple else field.default, text, flag_values=flag_values)


def _last_said(arguments, repeated, values):
    """The arguments, flag files read, where a flag that can be repeated is what its last source said: a flag file, or the command line.

    Raises: absl's error for a flag file that is not there.
    """
    sources, rest = [], iter(arguments)  # [(source, argument)]
    for number, argument in enumerate(rest):
        if argument == "--":
            rest = iter([argument, *rest])
            break
        if _flag_name(argument) in {*repeated, "flagfile"} and "=" not in argument:
            argument = f"{argument}={next(rest, '')}"
        of_file = _flag_name(argument) == "flagfile"
        read = values.read_flags_from_files([argument], force_gnu=True) if of_file else [argument]
        sources += [(number if of_file else "the command line", one) for one in read]
    last = {_flag_name(argument): source for source, argument in sources if _flag_name(argument) in repeated}
    return [argument for source, argument in sources if last.get(_flag_name(argument), source) == source] + list(rest)


def _flag_name(argument):
    """The flag that an argument is of, None for what is no flag."""
    return argument.lstrip("-").partition("=")[0] if argument.startswith("-") else None


def parse(argv, cls, extra=()):
    """A command line as (an instance of `cls`, {name: value} of `extra`).

    Args:
        argv: the program's name and its arguments; --flagfile=FILE is read, later flags win: of a flag that can be repeated
            all that the last flag file, or the command line, says of it.
        extra: (name, default, help) of flags that are not part of the configuration.
    Raises: BadInput for an unknown flag or value, a left-over argument or a flag file that is not there; SystemExit(0) after --help.
    """
    values = flags.FlagValues()
    define(values, cls)
    for name, default, text in extra:
        _DEFINE[type(default)](name, default, text, flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", flag_values=values, short_name="h")
    flags.DEFINE_string("flagfile", "", "read flags from this file, one a line; later flags win", flag_values=values)
    repeated = {field.name for field in dataclasses.fields(cls) if field.type is tuple} | {name for name, default, _ in extra if isinstance(default, tuple)}
    try:
        rest = values([argv[0], *_last_said(argv[1:], repeated, values)])[1:]
    except flags.Error as error:
        raise BadInput(f"{error}; --help lists the flags") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"--flagfile: expected a text file, one flag a line, received one that is no text ({error.reason})") from error
    if values.help:
        what = sys.modules["__main__"].__doc__ or ""  # of the program, with an example
        listed = [line for line in values.get_help(include_special_flags=False).splitlines() if not re.fullmatch(r"\S+:", line)]  # but names of modules
        print("\n\n".join([what.strip(), f"usage: {argv[0]} [--flagfile=FILE] [flags]", "\n".join(listed).strip("\n")]).strip())
        sys.exit(0)
    if rest:
        raise BadInput(f"arguments: expected flags as --name=value, received {rest[0]!r}; --help lists the flags")
    chosen = {f.name: getattr(values, f.name) for f in dataclasses.fields(cls)}
    chosen = {name: tuple(map(_at_home, value)) if isinstance(value, list) else _at_home(value) for name, value in chosen.items()}
    return cls(**chosen), {name: _at_home(getattr(values, name)) for name, _, _ in extra}


def _at_home(value):
    """A path that begins with ~, which a shell leaves as it is behind "--name=", as absl takes that of a flag file; other values as they are."""
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


def program(main):
    """Runs main() -> None as a program: a BadInput, a file that the system refuses, or memory or disk that is full, is one line on stderr and exit
    status 2, Ctrl-C exit status 130.
    """
    try:
        main()
    except BadInput as error:
        print(f"kerakd: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        told = f"expected to read or write it, received an error ({error.strerror}); {REMEDIES[error.errno]}"
        print(f"kerakd: {error.filename or 'disk'}: {told}", file=sys.stderr)
        sys.exit(2)
    except tf.errors.ResourceExhaustedError as error:
        disk, memory = (re.search(rf"[^\n]*({words})[^\n]*", error.message) for words in ("No space left|quota exceeded", "OOM when|[Ff]ailed to alloc"))
        if not disk and not memory:
            raise
        remedy = REMEDIES[errno.ENOSPC] if disk else "take smaller images, batches or networks"
        print(f"kerakd: {'disk' if disk else 'memory'}: expected enough, received an error ({(disk or memory)[0].strip()}); {remedy}", file=sys.stderr)
        sys.exit(2)
    except tf.errors.OpError as error:
        found = re.search(r"BadInput: (.*)", error.message)  # of a function that TensorFlow called, as for an image that can't be read
        if not found:
            raise
        print(f"kerakd: {found[1]}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("kerakd: interrupted", file=sys.stderr)
        sys.exit(130)
