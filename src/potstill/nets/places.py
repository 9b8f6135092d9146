"""Where killed trainings go on: the state of every member between two steps, in files.

A state holds weights, buffers and the optimiser's memory; draws come from (purpose, member, index)
and need nothing. Members in lockstep share a file, so that they stand at one step whatever happens.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from potstill.nets.layers import Network
from potstill.run import ArtifactError, logger
from potstill.run.checkpoint import digest, load_state, under
from potstill.run.keeper import Keeper

__all__ = ["Kept", "Place", "Places", "fits"]

State = dict[str, Tensor]
Kept = Callable[[Sequence[int]], "MembersKeeper"]  # of some members in lockstep their file


@dataclass(frozen=True, eq=False)
class Place:
    """Where one member stood."""

    step: int  # steps done
    epoch_steps: int  # steps of an epoch
    network: State  # parameters and buffers
    optimizer: State  # as `run.descent.pack` names them
    seconds: float  # spent and not reported
    pieces: tuple[int, int]  # networks and images at a time: sums in other pieces round differently

    @property
    def epoch(self) -> Fraction:
        """Epochs done, e.g. 5/2."""
        return Fraction(self.step, self.epoch_steps)


class Places:
    """The state files of the members of one training in ``folder``; ``key`` says of which.

    Also the clock of the training: seconds are handed to whoever reports, so that they add up.

    Args:
        every: seconds between writes. before: called before each, for what must not lag behind.
    """

    def __init__(
        self, folder: Path, key: str, every: float, before: Callable[[], None] = lambda: None
    ) -> None:
        self.folder, self.key, self.every, self.before = folder, key, every, before
        self.waiting: dict[int, Place] = {}  # on disk and not taken yet
        self.files: dict[Path, set[int]] = {}  # members of each file that are not done
        self._spent: defaultdict[int, float] = defaultdict(float)
        self._last = time.monotonic()

    def find(self, like: Network) -> None:
        """Read what a killed training left; what cannot be used is named in a warning."""
        for path in sorted(self.folder.glob("resume-*.safetensors")):
            try:
                places = _places(path, self.key, like)
            except ArtifactError as error:
                logger.warning("%s; beginning again", str(error).partition(";")[0])
                path.unlink(missing_ok=True)
                continue
            self.files[path] = set(places)
            for member, place in places.items():
                other = self.waiting.get(member)
                if other is None or other.step < place.step:
                    self.waiting[member] = place
        self._last = time.monotonic()

    def take(self, member: int) -> Place | None:
        """Return the place of a member that begins now."""
        place = self.waiting.pop(member, None)
        self._spent[member] = place.seconds if place else 0.0
        return place

    def spend(self, member: int) -> float:
        """Hand the seconds since the last report to a member; return what it has by now."""
        now = time.monotonic()
        self._spent[member] += now - self._last
        self._last = now
        return self._spent[member]

    def lap(self, member: int) -> float:
        """Return the seconds that a member has spent since its last lap."""
        self.spend(member)
        return self._spent.pop(member)

    def of(self, members: Sequence[int]) -> Kept:
        """Return these files for one training call, whose members 0, 1, ... have these numbers."""
        return lambda own: MembersKeeper(self, [members[k] for k in own])

    def forget(self, member: int) -> None:
        """Remove the files that only members that are done still had a use for."""
        if member in self.waiting:
            return
        for path, members in self.files.items():
            if member in members:
                members.discard(member)
                if not members:
                    path.unlink(missing_ok=True)


class MembersKeeper(Keeper):
    """The file of some ``members`` in lockstep."""

    def __init__(self, places: Places, members: Sequence[int]) -> None:
        name = f"resume-{members[0]:03d}" + (f"-{digest(members)}" if len(members) > 1 else "")
        super().__init__(places.folder / f"{name}.safetensors", places.every, places.before)
        self.places, self.members = places, members

    def put(
        self, states: Sequence[State], step: int, epoch_steps: int, pieces: tuple[int, int],
        leaving: bool,
    ) -> None:  # fmt: skip
        """Write where they stand, unless one has a place further on to go on from."""
        own, places = self.members, self.places
        if places.waiting.keys() & set(own):
            return
        tensors = {
            f"{member}.{name}": value
            for member, state in zip(own, states, strict=True)
            for name, value in state.items()
        }
        seconds = {str(member): places.spend(member) for member in own}
        facts = {"key": places.key, "step": step, "epoch_steps": epoch_steps, "seconds": seconds}
        facts["pieces"] = list(pieces)
        places.files[self.path] = set(own)
        (self.leave if leaving else self.save)(tensors, facts)


def _places(path: Path, key: str, like: Network) -> dict[int, Place]:
    """Sort what a file holds by member.

    Raises:
        ArtifactError: it is damaged, or no state of this training.
    """
    tensors, facts = load_state(path)
    try:
        if facts["key"] != key:
            raise ValueError("key")
        step, epoch_steps = int(facts["step"]), int(facts["epoch_steps"])
        networks, images = map(int, facts["pieces"])
        found = {}
        for name, seconds in facts["seconds"].items():
            own = under(f"{name}.", tensors)
            network = under("network.", own)
            optimizer = {n: t for n, t in own.items() if n.startswith("optimizer.")}
            counts = step, epoch_steps, networks, images
            if min(counts) <= 0 or not fits(network, optimizer, like):
                raise ValueError("shapes")
            place = Place(step, epoch_steps, network, optimizer, float(seconds), (networks, images))
            found[int(name)] = place
        return found
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} is no state of this training; delete it") from error


def fits(network: State, optimizer: State, like: Network) -> bool:
    """Whether tensors are those of such a network and of its optimiser."""
    trained = [p.shape for p in like.parameters() if p.requires_grad]
    shapes = {str(index): shape for index, shape in enumerate(trained)}
    own = {name: (value.shape, value.dtype) for name, value in network.items()}
    return own == {n: (t.shape, t.dtype) for n, t in like.state_dict().items()} and all(
        value.shape == (() if name.endswith(".step") else shapes.get(name.split(".")[1]))
        for name, value in optimizer.items()
    )
