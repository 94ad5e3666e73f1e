"""The command."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from . import __doc__ as description
from .chart import Chart
from .measure import measure_shape, phases_of, run_case, usable_processors
from .normforge import library_paths, load
from .problem import OPERATORS, PHASES
from .report import Results, Table, head_line, print_spread

if TYPE_CHECKING:
    import ctypes


def fail(message: str) -> NoReturn:
    print(f"peers: error: {message}", file=sys.stderr)
    sys.exit(2)


def check_writable(path: Path) -> None:
    if path.exists() and not path.is_file():
        fail(f"cannot write {path}: not a regular file")
    try:
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")


def write_whole(path: Path, text: str) -> None:
    """Readers see the old file or the new, never a part."""
    target = path.resolve()
    new = target.with_name(f"{target.name}.{os.getpid()}.new")
    try:
        new.write_text(text)
        new.replace(target)
    except OSError as error:
        new.unlink(missing_ok=True)
        fail(f"cannot write {path}: {error.strerror}")


def thread_count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 to 1024")
    return int(text)


def some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                expected = ", ".join(known)
                raise argparse.ArgumentTypeError(f"'{name}' is not among {expected}")
        return [name for name in known if name in names]

    return parse


def parse_arguments() -> argparse.Namespace:
    first, _, rest = (description or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="peers",
        description=first,
        epilog=rest.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="fewer shapes, and less time for each")
    parser.add_argument(
        "--operators",
        type=some_of(OPERATORS),
        default=list(OPERATORS),
        metavar="LIST",
        help=f"some of {','.join(OPERATORS)} (all)",
    )
    parser.add_argument(
        "--phases",
        type=some_of(PHASES),
        default=list(PHASES),
        metavar="LIST",
        help=f"some of {','.join(PHASES)} (all)",
    )
    parser.add_argument(
        "--threads", type=thread_count, default=2, metavar="N", help="of each contender (2)"
    )
    parser.add_argument(
        "--build", type=Path, default=Path("build"), metavar="DIR", help="Normforge's build (build)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write an object a line")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="also draw a chart")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # the process of one operator and shape
    return parser.parse_args()


def check_arguments(arguments: argparse.Namespace) -> ctypes.CDLL:
    for path in library_paths(arguments.build):
        if not path.is_file():
            fail(f"{path} is missing; build Normforge first, or name its folder with --build")
    for path in (arguments.json, arguments.svg):
        if path:
            check_writable(path)
    if not importlib.util.find_spec("numpy"):
        fail("this Python has no package numpy")
    processors = len(usable_processors())
    if arguments.threads > processors:
        fail(f"{arguments.threads} threads, but there are {processors} processors")
    if not any(phases_of(OPERATORS[name], arguments) for name in arguments.operators):
        fail(f"none of these norms has the phase {arguments.phases[0]}")
    try:
        return load(library_paths(arguments.build)[0])
    except (OSError, AttributeError) as error:
        fail(f"cannot load Normforge: {error}")


def main() -> int:
    arguments = parse_arguments()
    if arguments.case:
        run_case(arguments)
        return 0
    head = head_line(arguments.threads, check_arguments(arguments))
    results, table = Results(), Table(arguments.markdown)
    failures: list[str] = []
    operators = [OPERATORS[name] for name in arguments.operators]
    cases = [
        (operator, shape)
        for operator in operators
        if phases_of(operator, arguments)
        for shape in (operator.quick if arguments.quick else operator.shapes)
    ]

    print(head + "\n")
    table.head()
    with tempfile.TemporaryDirectory(prefix="peers-") as cache:
        for operator, shape in cases:
            records, failure = measure_shape(operator, shape, arguments, cache)
            if failure:
                failures.append(f"{operator.name} {shape}: {failure}")
            for record in records:
                if reason := record.get("left_out"):
                    fields = ("operator", "sizes", "phase", "layout")
                    case = " ".join(record[field] for field in fields)
                    failures.append(f"{case}, {record['contender']}: {reason}")
                else:
                    results.add(record)
            for phase in phases_of(operator, arguments):
                table.case(results, operator, shape, phase)
    for operator in operators:
        shapes = [shape for other, shape in cases if other is operator]
        table.summary(results, operator, shapes, phases_of(operator, arguments))

    print(
        "\nus: Normforge's median in each layout, nchw / nhwc or nc. Peers: their time over\n"
        "Normforge's in the same layout. Best peer: the fastest in any layout over Normforge in the\n"
        "first. Behind: below 1/1.03."
    )
    print_spread(results)
    for failure in failures:
        print(f"left out: {failure}")
    if arguments.json:
        write_whole(arguments.json, "".join(json.dumps(r) + "\n" for r in results.records))
    if arguments.svg:
        phases = [p for p in arguments.phases if any(p in o.phases for o, _ in cases)]
        write_whole(arguments.svg, Chart(results, cases, phases, f"{datetime.date.today()}; {head}").svg())
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
