"""Flags: the words of a command become objects."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, get_args, get_origin

import tyro

from potstill.app.help_text import WIDE, grouped
from potstill.app.suiting import default_budget
from potstill.run.context import Circumstances, Run
from potstill.run.errors import InputError, PotstillError, nearest
from potstill.run.fields import Range, check_fields, fields_of
from potstill.run.parts import flat, parts_of
from potstill.run.signals import uninterrupted

__all__ = [
    "FLAT",
    "Machine",
    "Taught",
    "data_flags",
    "method_flags",
    "parse",
    "parse_method",
    "redeclared",
]

Threads = Annotated[int, Range(0, 1024)]
FLAT = tyro.conf.arg(name="")  # fields of a nested dataclass are flags like any other


@dataclass(frozen=True, kw_only=True)
class Machine(Circumstances):
    """Where to run."""

    threads: Threads = 0  # CPU threads; 0 = torch's choice

    def run(self, seed: int) -> Run:
        """Return the Run these flags describe."""
        import torch

        from potstill.run.machine import tune_allocator

        tune_allocator()
        if self.threads:
            torch.set_num_threads(self.threads)
        return Run(seed=seed, **{f.name: getattr(self, f.name) for f in fields(Circumstances)})


@dataclass(kw_only=True)
class Taught:
    """From which labels students learn, and how, where it is not as the protocol has it."""

    # auto, hard, soft, views, projected (all stored in the set) or online (by --teacher)
    labels: str | None = None
    loss: str | None = None  # cross_entropy, kl or squared_error; default as suits the labels
    temperature: float | None = None  # of a teacher's labels and of students who learn them
    teacher: str | None = None  # for --labels online: network, trained on all real images
    teacher_prior: str | None = None  # a --prior for it; default balanced_softmax


@contextlib.contextmanager
def parse(kind: Any, words: list[str], command: str) -> Iterator[Any]:
    """Read and check flags; whatever is wrong, here or in the block, names them as they are typed.

    Messages write a field of Python's as ``name is value`` or ``name=value``.
    """
    try:
        chosen = _read(kind, words, command)
        for part in (chosen, *filter(is_dataclass, vars(chosen).values())):
            check_fields(part)
            for _, own in parts_of(part):
                check_fields(own)
        yield chosen
    except PotstillError as error:
        error.args = (_as_typed(str(error), _flags(kind, words)),)
        raise


def _read(kind: Any, words: list[str], command: str) -> Any:
    """Read flags; what tyro finds wrong becomes one sentence."""
    box = io.StringIO()
    if {"-h", "--help"} & set(words):
        print(grouped(kind, _wide_help(kind, command)), end="")
        raise SystemExit(0)
    try:
        # reading comments goes through ast.parse, which a signal in its midst breaks (SystemError)
        with contextlib.redirect_stderr(box), uninterrupted():
            return tyro.cli(kind, args=words, prog=f"potstill {command}", registry=_NUMBERS)
    except SystemExit as stop:
        if not stop.code:
            raise
        cause = stop.__context__
        refused = cause if isinstance(cause, InputError) else None
        raise refused or InputError(_sentence(box.getvalue(), command)) from None


def _wide_help(kind: Any, command: str) -> str:
    """What tyro says of the flags, with no line broken."""
    box, before = io.TextIOWrapper(io.BytesIO(), "utf-8"), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDE)
    try:
        with contextlib.redirect_stdout(box), contextlib.suppress(SystemExit), uninterrupted():
            tyro.cli(kind, args=["--help"], prog=f"potstill {command}", registry=_NUMBERS)
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    box.seek(0)
    return box.read()


_INSIDE = r"[\w./\\\x22\x27-]"  # beside a name that is part of a path, a text or a flag
_POSITIONAL = get_args(tyro.conf.Positional[str])[1]
_NUMBERS = tyro.constructors.ConstructorRegistry()


@_NUMBERS.primitive_rule
def _number(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """A word where a number belongs stays a word: one validator has one sentence for it."""
    kind: Any = info.type
    if kind not in (int, float):
        return None

    def read(words: list[str]) -> Any:
        try:
            return kind(words[0])
        except ValueError:
            return words[0]

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


def _flags(kind: Any, words: list[str]) -> dict[str, str]:
    """Return the flag of each field of an options class: of several names the one typed."""
    typed = {word.partition("=")[0] for word in words}
    found: dict[str, str] = {}
    for name, hint in fields_of(kind).items():
        inner, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        own: dict[str, str] = {}
        if is_dataclass(inner):
            own = _flags(inner, words)
        elif _POSITIONAL not in marks:
            said: Any = next((mark for mark in marks if hasattr(mark, "aliases")), None)
            names = [said.name, *(said.aliases or ())] if said and said.name else [name]
            flags = ["--" + one.lstrip("-").replace("_", "-") for one in names]
            own[name] = next((flag for flag in flags if flag in typed), flags[0])
        # the data and a method may have fields of one name: what was typed is meant
        found |= {key: flag for key, flag in own.items() if found.get(key) not in typed}
    return found


def _as_typed(message: str, flags: dict[str, str]) -> str:
    """Put flags in the place of fields.

    A name with an underscore is a field wherever it stands alone; other names are words, too, and
    are fields only in ``name=value`` and where a clause begins with ``name is``.
    """
    for name, flag in flags.items():
        message = re.sub(rf"(?<!{_INSIDE}){name}=(?=\S)", f"{flag} ", message)
        alone = rf"(?<!{_INSIDE}){name}(?!{_INSIDE}|=)"
        clause = rf"(?:^|(?<=, )|(?<= and )){name}(?= is )"
        message = re.sub(alone if "_" in name else clause, flag, message)
    return message


def _sentence(box: str, command: str) -> str:
    """The message inside tyro's frame and the option it suggests, without the frame."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ ")
        if text and set(text) <= {"─", "-"}:
            parts.append([])
        elif text and text[0] not in "╭╰":
            parts[-1].append(text)
    titled = not box.startswith("╭")  # without Unicode the title stands above a rule of its own
    message = " ".join(parts[min(titled, len(parts) - 1)]).rstrip(".").replace(". ", "; ")
    similar = re.search(r"--\w[\w-]*", box.partition("Perhaps you meant")[2])
    if similar:
        return f"{message}; did you mean {similar[0]!r}?"
    return f"{message}; potstill {command} --help explains the flags"


def data_flags(taken: Container[str]) -> Any:
    """Return Data with ``--label-column`` for its labels, ``--labels`` too unless that is taken."""
    from potstill.app.job import Data

    column = tyro.conf.arg(
        name="label-column",
        aliases=None if "labels" in taken else ("--labels",),
        help="label column, for tables with several",
    )
    fields = [("labels", Annotated[str | None, column], field(default=None))]
    return redeclared(Data, fields)


def redeclared(kind: Any, own: list[Any]) -> Any:
    """Return a dataclass with some of its fields declared anew."""
    made = make_dataclass(kind.__name__, own, bases=(kind,), frozen=True, kw_only=True)
    made.__module__ = kind.__module__  # where the comments stand that explain the other fields
    return made


def chosen_kinds(words: list[str], method: Any) -> dict[str, str]:
    """Return the kinds of parts named on the command line: they decide which flags there are.

    Raises:
        InputError: there is no such kind.
    """
    found = {}
    for room, part in parts_of(method):
        for index, word in enumerate(words):
            name, _, value = word.partition("=")
            if len(part.kinds) > 1 and name == f"--{room}":
                kind = value or "".join(words[index + 1 : index + 2])
                if kind not in part.kinds:
                    raise InputError(f"{name} is {kind!r}{nearest(kind, part.kinds)}")
                try:  # its flags may have the names of others
                    method.check_kind(room, kind)
                except InputError as error:
                    raise InputError(f"--{error}") from None
                found[room] = kind
    return found


def _refuse_other_kinds(words: list[str], method: Any) -> None:
    """Refuse a flag that only another kind of part has, naming that kind."""
    known = flat(method)
    for word in words:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        for room, part in parts_of(method) if word.startswith("--") else ():
            others: dict[str, Any] = {**part.kinds}
            kinds = [kind for kind, other in others.items() if name in fields_of(other)]
            if name not in known and kinds:
                raise InputError(
                    f"{word.partition('=')[0]} is a flag of --{room} {kinds[0]}, not of --{room} "
                    f"{part.kind}; use --{room} {kinds[0]}"
                )


def method_flags(kind: Any, budget: str, job: Any, about: str, words: list[str]) -> Any:
    """Return the dataclass of a command's flags: its own, the data's, machine's and method's.

    Args:
        kind: class of the method; its defaults are those of ``budget``.
        job: dataclass of what the command needs besides. about: a sentence for --help.
        words: of the command line, which choose the kinds of parts.
    """
    method = kind.budget(budget, **chosen_kinds(words, kind()))
    _refuse_other_kinds(words, method)
    data = data_flags(method.fields())
    sizes = tyro.conf.arg(help=f"size of the defaults: {', '.join(kind.budgets())}")
    parts: list[Any] = []  # annotated as what they are, with flags of their own
    rooms: list[Any] = []
    for name, part in parts_of(method):
        parts.append((name, Annotated[type(part), FLAT], field(default=part)))
        if len(part.kinds) > 1:
            fitting = kind.pairs.get(name, (part.kind,))
            told = tyro.conf.arg(help=f"{' or '.join(fitting)}; decides which flags")
            rooms.append((name, Annotated[str, told], field(default=part.kind)))
    composed = redeclared(kind, parts)
    values = {f.name: getattr(method, f.name) for f in fields(method)}
    options = make_dataclass(
        "Options",
        [
            ("job", Annotated[job, FLAT]),
            ("budget", Annotated[str, sizes], field(default=budget)),
            ("data", Annotated[data, FLAT], field(default_factory=data)),
            ("machine", Annotated[Machine, FLAT], field(default_factory=Machine)),
            *rooms,
            (
                "method",
                Annotated[composed, FLAT],
                field(default_factory=lambda: composed(**values)),
            ),
        ],
        kw_only=True,
    )
    options.__doc__ = f"{about} Defaults shown are those of the {budget} budget."
    return options


@contextlib.contextmanager
def parse_method(
    words: list[str], command: str, job: Any, about: str = ""
) -> Iterator[tuple[Any, Any]]:
    """As :func:`parse`, for a command whose first word names a method; yield flags and method.

    Args:
        job: dataclass of what the command needs besides. about: a sentence for --help; by default
            what the method is.
    """
    from potstill.methods import find

    kind, budget = find(words[0]), default_budget(words)
    about = about or f"{kind.info.title} ({kind.info.paper})."
    options = method_flags(kind, budget, job, about, words[1:])
    with parse(options, words[1:], f"{command} {words[0]}") as chosen:
        yield chosen, kind(**{f.name: getattr(chosen.method, f.name) for f in fields(kind)})
