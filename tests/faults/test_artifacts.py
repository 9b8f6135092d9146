"""Artifacts from anybody: whatever is done to the files, load gives the same set or a sentence.

Never other images or labels, another exception, a long wait or much memory.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ground
import mutate
import torch
from cases import Case, Fault, cli, draw_for, judged, trials
from safetensors import safe_open
from safetensors.torch import load_file, save

from potstill.run import ArtifactError
from potstill.synthetic import SyntheticSet

TENSORS = "synthetic.safetensors"


def fingerprint(s: SyntheticSet) -> list[Any]:
    """Everything that a receiver trains on, as bytes."""
    images, labels, soft, weights = s.decoded()
    stored = [s.images, images, labels, soft, weights, *s.transform.to_tensors().values()]
    stored += [s.regression_targets, *(s.view_labels.tensors().values() if s.view_labels else ())]
    stored += [s.projection.weight, s.projection.bias] if s.projection else []
    raw = [None if t is None else t.numpy().tobytes() for t in stored]
    return [*raw, s.classes, s.syn_lr, json.dumps(s.decode)]


def loaded(place: Path, expected: list[Any] | None) -> str:
    """Load what may be damaged; ``expected``: it must be this or refused."""
    try:
        found = SyntheticSet.load(place)
    except ArtifactError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise Fault(f"no sentence: {str(error)[:300]!r}") from None
        return "refused"
    if expected is None:
        found.decoded()
        return "another sound set"
    if fingerprint(found) != expected:
        raise Fault("other images or labels without a word")
    return "undamaged"


def _header(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _headed(text: str, rest: bytes) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw + rest


def bent_header(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    header, rest = _header(content)
    what, text = mutate.altered(header, draw)
    return f"header: {what}", _headed(text, rest)


def bent_facts(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    header, rest = _header(content)
    facts = json.loads(header["__metadata__"]["potstill"])
    what, text = mutate.altered(facts, draw)
    header["__metadata__"]["potstill"] = text
    return f"facts: {what}", _headed(json.dumps(header), rest)


def lengthened(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    size = draw.choice((0, 1, 2**63, 2**64 - 1, 2**32, len(content), draw.randrange(5000)))
    return f"header of {size} bytes", struct.pack("<Q", size) + content[8:]


def forged(content: bytes, draw: random.Random, scratch: Path) -> tuple[str, bytes]:
    """Well-formed, with a right checksum, and a strange content."""
    from potstill.synthetic.tensors import checksum

    scratch.write_bytes(content)
    tensors = load_file(scratch)
    with safe_open(scratch, framework="pt") as file:
        facts = json.loads(file.metadata()["potstill"])
    facts.pop("checksum")
    what = ""
    if draw.random() < 0.4:
        what, text = mutate.altered(facts, draw)
        try:
            facts = json.loads(text)
            json.dumps(facts).encode()
        except (ValueError, RecursionError):
            facts["classes"] = []
    if not isinstance(facts, dict):
        facts = {}
    if not what or draw.random() < 0.3:
        name = draw.choice(sorted(tensors))
        how, tensors = _strange(tensors, name, draw)
        what += how
    try:
        facts["checksum"] = checksum(tensors, facts)
    except (RuntimeError, TypeError):  # no view as bytes
        facts["checksum"] = ""
    return f"forged {what}", save(tensors, metadata={"potstill": json.dumps(facts)})


def _strange(
    tensors: dict[str, torch.Tensor], name: str, draw: random.Random
) -> tuple[str, dict[str, torch.Tensor]]:
    value = tensors[name]
    numbers = (float("nan"), float("inf"), -1.0, 0.0, 1e38, 1e-45, 2.0**62, 5.0)
    how = draw.choice(("drop", "number", "type", "shape", "rename", "all"))
    if how == "drop":
        del tensors[name]
    elif how in ("number", "all") and value.numel():
        number = draw.choice(numbers)
        whole = not value.dtype.is_floating_point
        if whole and number == number:
            most = min(2**62, torch.iinfo(value.dtype).max)
            number = int(max(min(number, most), max(-(2**62), torch.iinfo(value.dtype).min)))
        flat = value.clone().reshape(-1)
        if not (whole and number != number):
            flat[:: 1 if how == "all" else max(1, flat.numel())] = number
        tensors[name] = flat.reshape(value.shape)
        name += f" {number}"
    elif how == "type":
        kinds = (torch.float16, torch.float64, torch.int64, torch.int32, torch.bool, torch.bfloat16)
        tensors[name] = value.to(draw.choice(kinds))
    elif how == "shape":
        shapes = [value[None], value.reshape(-1), value.reshape(-1)[:0], value.reshape(-1)[:1]]
        tensors[name] = draw.choice(shapes).contiguous()
    else:
        tensors[draw.choice(("x", "images", "transform.x", "weights"))] = tensors.pop(name)
    return f"{how} {name}", tensors


def displaced(path: Path, draw: random.Random) -> str:
    """Something that is no file in the place of one."""
    path.unlink()
    how = draw.choice(("missing", "folder", "fifo", "loop", "dangling", "/dev/zero", "/dev/full"))
    if how == "folder":
        path.mkdir()
    elif how == "fifo":
        os.mkfifo(path)
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "dangling":
        path.symlink_to("nowhere")
    elif how.startswith("/dev"):
        path.symlink_to(how)
    return f"{path.name} is {how}"


def case(root: Path, made: dict[str, Path], seed: int, number: int) -> Case:
    draw, place = draw_for("artifacts", seed, number), root / "spoilt"
    name = draw.choice(sorted(made))
    others = [folder / TENSORS for kind, folder in made.items() if kind != name]
    how = draw.choice(
        ("bytes",) * 4 + ("header",) * 3 + ("facts",) * 3 + ("length", "forged", "forged alone")
        + ("swap", "provenance", "provenance", "other file", "displaced")
    )  # fmt: skip

    def run() -> str:
        ground.fresh(made[name], place)
        expected: list[Any] | None = fingerprint(SyntheticSet.load(place))
        path = place / TENSORS
        content, kind = path.read_bytes(), how
        if how == "bytes":
            path.write_bytes(mutate.damaged(content, draw, [o.read_bytes() for o in others])[1])
        elif how in ("header", "facts", "length"):
            bend = {"header": bent_header, "facts": bent_facts, "length": lengthened}[how]
            path.write_bytes(bend(content, draw)[1])
        elif how.startswith("forged"):
            path.write_bytes(forged(content, draw, root / "scratch")[1])
            if how == "forged alone":
                (place / "provenance.json").unlink()
                expected = None
        elif how == "swap":
            shutil.copy(draw.choice(others), path)
        elif how == "provenance":
            beside = place / "provenance.json"
            if draw.random() < 0.5:
                text = mutate.altered(json.loads(beside.read_text()), draw)[1]
                beside.write_bytes(text.encode("utf-8", "surrogatepass"))
            else:
                beside.write_bytes(mutate.damaged(beside.read_bytes(), draw)[1])
        else:
            files = [TENSORS, "provenance.json", "README.md", "preview.png", "data"]
            target = place / draw.choice(files)
            target = next(iter(target.iterdir())) if target.is_dir() else target
            if how == "displaced":
                displaced(target, draw)
            else:
                target = place / "README.md" if target.name in files[:2] else target
                target.write_bytes(mutate.damaged(target.read_bytes(), draw)[1])
        return f"{kind}: {loaded(place, expected)}"

    return Case(number, f"{how} of {name}", run)


def cases(root: Path, seed: int, numbers: range) -> Iterator[Case]:
    made = ground.artifacts(root / "made")
    for number in numbers:
        yield case(root, made, seed, number)


def command_cases(root: Path, seed: int, numbers: range) -> Iterator[Case]:
    """The same damage in a run folder, met by the commands that read it."""
    template = ground.finished(root)
    other = ground.finished(root, "random", scored=False)
    for number in numbers:
        yield _command_case(root, template, other, seed, number)


def _command_case(root: Path, template: Path, other: Path, seed: int, number: int) -> Case:
    draw = draw_for("artifact commands", seed, number)
    place, page = root / "spoilt", root / "page.html"
    command = {
        "evaluate": ["evaluate", str(place), *shlex.split(STUDENT)],
        "report": ["report", str(place), "--out", str(page)],
        "compare": ["compare", str(template), str(place), "--out", str(page)],
    }
    name = draw.choice(sorted(command))
    files = ["synthetic.safetensors", "synthetic.safetensors", "provenance.json", "preview.png"]
    target = draw.choice(files)

    def run() -> str:
        ground.fresh(template, place)
        path = place / "synthetic" / target
        content = path.read_bytes()
        bends: list[Callable[[], tuple[str, bytes]]] = [
            lambda: mutate.damaged(content, draw, [(other / "synthetic" / target).read_bytes()])
        ]
        if target == TENSORS:
            bends += [lambda: bent_header(content, draw), lambda: bent_facts(content, draw)]
        if draw.random() < 0.15:
            displaced(path, draw)
        else:
            path.write_bytes(draw.choice(bends)()[1])
        outcome = judged(cli(command[name]), (0, 2))
        if page.exists() and mutate.MARK in page.read_text():
            raise Fault("text of a file stands unescaped on the page")
        return f"{name}: {outcome}"

    return Case(number, f"{name} on damaged {target}", run, seconds=15.0)


STUDENT = f"{ground.STUDENT} --no-baseline --no-quantized"


def test_damaged_artifacts_are_refused_or_the_same(tmp_path):
    with ground.environment(tmp_path):
        tally = trials(cases(tmp_path, 0, range(300)))
    assert not tally.failures, "\n".join(tally.failures)
    assert tally.tried == 300
    assert sum(n for kind, n in tally.outcomes.items() if kind.endswith("refused")) > 150


def test_commands_meet_damaged_artifacts_with_a_sentence(tmp_path):
    with ground.environment(tmp_path):
        ground.warm()
        tally = trials(command_cases(tmp_path, 0, range(8)))
    assert not tally.failures, "\n".join(tally.failures)
