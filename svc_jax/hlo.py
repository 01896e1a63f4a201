"""What a program that XLA compiled for TPUs says of itself, read from its text."""

import collections
import dataclasses
import os
import re

_COLLECTIVES = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(-start)?\("
)
_ITEM_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "f64": 8,
    "s64": 8,
}  # others: 4
COSTLIEST = 16


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a kernel on a chip cannot be faster than; rates in bfloat16.

    Peak, memory and bandwidth are Google's figures; the clock is the peak over what the
    matrix units do in a cycle.

    Attributes:
      ghz: of the clock.
      teraflops: peak of the matrix units, a second.
      gigabytes: of memory.
      bandwidth: of that memory, in GB/s.
      link: to a neighbour, in GB/s, one way; Google's figure for all links over their
        number.
      filled: share of the matrix units that products of 128 channels use.
      curves: functions like tanh that the chip computes in a cycle.
    """

    ghz: float
    teraflops: float
    gigabytes: float
    bandwidth: float
    link: float
    filled: float = 1.0
    curves: int = 1024

    def kernel_seconds(self, flops: float, num_bytes: float, curves: float) -> float:
        """Time of a kernel whose arithmetic, transfers and curves overlap."""
        return max(
            flops / (1e12 * self.teraflops * self.filled),
            num_bytes / (1e9 * self.bandwidth),
            curves / (1e9 * self.ghz * self.curves),
        )

    def crossing_seconds(self, num_bytes: int, num_chips: int) -> float:
        """Time of a sum over chips in one ring, by one link; a microsecond a hop."""
        hops = 2 * (num_chips - 1)
        return hops * (num_bytes / num_chips / (1e9 * self.link) + 1e-6)


CHIPS = {
    "v4": Chip(1.05, 275, 32, 1228, 50, curves=2048),  # two cores, as v5p
    "v5e": Chip(1.5, 197, 16, 819, 50),
    "v5p": Chip(1.75, 459, 95, 2765, 100, curves=2048),
    "v6e": Chip(1.75, 918, 32, 1640, 100, filled=0.25),  # its units are 256 x 256
}


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction of a compiled program.

    Attributes:
      cycles: for all the times it runs, as XLA estimates them; of a kernel that is not
        XLA's own, as `Chip.kernel_seconds` does.
      name: where in the program it is from, as JAX names it.
      line: FILE:LINE, or "".
    """

    cycles: int
    name: str
    line: str


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Instructions of each computation of a compiled program, and the entry's name."""
    found, entry, current = {}, "", None
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = found.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            current.append(line.strip())
    return found, entry


def _instructions(text: str):
    """Yields (how often it runs, instruction), those of loops and calls included.

    A loop runs as often as the largest number that its condition compares with.
    """
    found, entry = _computations(text)

    def called(role, line):
        match = re.search(rf"\b{role}=%?([\w.\-]+)", line)
        return match[1] if match else None

    def walk(name, times):
        for line in found.get(name, ()):
            yield times, line
            if " while(" in line:
                condition = "".join(found[called("condition", line)])
                trips = max(map(int, re.findall(r"constant\((\d+)\)", condition)))
                yield from walk(called("body", line), times * trips)
            elif " call(" in line:
                yield from walk(called("to_apply", line), times)

    yield from walk(entry, 1)


def _places(text: str) -> dict[str, str]:
    """FILE:LINE of each stack frame, of the innermost call that stands in svc_jax."""
    tables = {}
    for title in ("FileNames", "FileLocations", "StackFrames"):
        part = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        rows = part[1].splitlines() if part else []
        tables[title] = dict(row.split(" ", 1) for row in rows)

    def number(name, row):
        return re.search(rf"\b{name}=(\d+)", row)[1]

    def place(frame):
        location = tables["FileLocations"][number("file_location_id", frame)]
        file = tables["FileNames"][number("file_name_id", location)].strip('"')
        return file, number("line", location)

    found = {}
    for name, frame in tables["StackFrames"].items():
        file, line = place(frame)
        seen = {name}
        while f"{os.sep}svc_jax{os.sep}" not in file:
            parent = number("parent_frame_id", frame)
            if parent in seen or parent not in tables["StackFrames"]:
                break
            seen.add(parent)
            frame = tables["StackFrames"][parent]
            file, line = place(frame)
        found[name] = f"{os.path.basename(file)}:{line}"
    return found


def operations(text: str, chip: Chip) -> list[Operation]:
    """All that takes cycles of a chip."""
    found, lines_of = [], _places(text)
    for times, line in _instructions(text):
        if cycles := _cycles(line, chip):
            name = re.search(r'op_name="([^"]*)"', line)
            frame = re.search(r"stack_frame_id=(\d+)", line)
            place = lines_of.get(frame[1], "") if frame else ""
            label = name[1] if name else line.partition(" = ")[0]
            found.append(Operation(times * cycles, label, place))
    return found


def _cycles(line: str, chip: Chip) -> int:
    if cycles := re.search(r'"estimated_cycles":"(\d+)"', line):
        return int(cycles[1])
    if cost := re.search(r'"cost_estimate":\{([^}]*)\}', line):
        said = {key: int(n) for key, n in re.findall(r'"(\w+)":"(\d+)"', cost[1])}
        seconds = chip.kernel_seconds(
            said["flops"], said["bytes_accessed"], said["transcendentals"]
        )
        return round(1e9 * chip.ghz * seconds)
    return 0


def costliest(found: list[Operation]) -> list[tuple[str, int, str]]:
    """(line, cycles of all operations from it, the name of the costliest of them)."""
    by_line = collections.defaultdict(list)
    for operation in found:
        by_line[operation.line or operation.name].append(operation)
    rows = [
        (
            line,
            sum(one.cycles for one in those),
            max(those, key=lambda one: one.cycles).name,
        )
        for line, those in by_line.items()
    ]
    return sorted(rows, key=lambda row: -row[1])[:COSTLIEST]


def _num_bytes(shape: str) -> int:
    """Bytes of an HLO shape, of a tuple all its parts."""
    total = 0
    for dtype, axes in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape):
        count = 1
        for axis in filter(None, axes.split(",")):
            count *= int(axis)
        total += count * _ITEM_BYTES.get(dtype, 4)
    return total


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """What crosses between chips: kind -> (how many, bytes of their results)."""
    found = collections.defaultdict(lambda: (0, 0))
    for times, line in _instructions(text):
        if match := _COLLECTIVES.search(line):
            count, size = found[match[2]]
            found[match[2]] = count + times, size + times * _num_bytes(match[1])
    return dict(found)
