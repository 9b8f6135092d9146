"""The real half of distribution matching, computed once and cached.

What a matching step needs of the real data (class means of an embedding, or the features
themselves) depends on a network, an augmentation and frequencies, but never on the synthetic
images. An :class:`Entry` is one such triple with its result; the synthetic batch re-applies the
entry's own augmentation, so the two sides stay Siamese. Policies:

* ``rolling``: a window of entries; every ``refresh`` steps the oldest leaves and a new one enters.
* ``fixed``: the first ``entries`` entries for the whole run, each used once per pass.
* ``features``: un-augmented features per network kept in half precision; the embedding (fresh
  frequencies every step) is applied to them at each step.
* ``fresh``: nothing is kept; a new entry from ``batch_real`` images per class at every step, as
  the methods were published.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from potstill.data import DSA, ImageSet
from potstill.data.transform import Transform
from potstill.experts.pool import Pool, fingerprint
from potstill.match.mmd import by_class
from potstill.match.spectral import SegmentMean
from potstill.nets import create
from potstill.run import Run, StorageError, logger
from potstill.run.cache import Cached, key_facts
from potstill.run.fields import Count, Every, OneOf, Part, check_value
from potstill.run.machine import CPU_CHUNK
from potstill.run.memory import Portion, bytes_per_image

__all__ = ["Entry", "Eye", "Policy", "RealSide"]

Policy = Annotated[str, OneOf("rolling", "fixed", "features", "fresh")]
_DISK_LIMIT = 8 << 20  # bytes: tables are stored for reuse and resume, feature banks are not


@dataclass
class Entry:
    """One view of the real data. ``number`` names every draw that made it."""

    number: int
    member: int  # network of the pool, or -1 for a fresh random network
    share: float  # of the initial weights in the blend
    augment: dict[str, Tensor]  # Siamese parameters, one set for both sides
    frequencies: Tensor | None = None  # (T, d)
    table: Tensor | None = None  # (C, q) class means of the embedding
    bank: Tensor | None = None  # (n, d) half-precision features, class-sorted (policy "features")
    bank_labels: Tensor | None = None  # (n,)
    stack: Tensor | None = None  # (C, n, d) features padded per class (exact distances)
    mask: Tensor | None = None  # (C, n) true where the stack holds an image


class Eye:
    """Sees images through one network of the pool (or a random one), weights frozen."""

    def __init__(
        self,
        real: ImageSet,
        transform: Transform,
        network: str,
        pool: Pool | None,
        run: Run,
        *,
        normalize: bool,
    ) -> None:
        channels, height, width = real.shape
        self.run, self.network, self.normalize = run, network, normalize
        self.pool = pool.to(run.device) if pool is not None else None
        self.transform = transform
        self._make = lambda generator: create(
            network,
            channels=channels,
            size=(height, width),
            classes=real.num_classes,
            generator=generator,
        )
        self.net = (
            self._make(run.generator("network", 0)).to(run.device).eval().requires_grad_(False)
        )
        if run.on_gpu:
            self.net = self.net.to(memory_format=torch.channels_last)
        self._call: Callable[[Tensor], Tensor] = self.net.features
        if run.compile:
            self._call = torch.compile(self.net.features)
        self._loaded: tuple[int, float, int] | None = None

    @property
    def dim(self) -> int:
        """Feature dimension."""
        return int(self.net.feature_dim)

    @torch.no_grad()
    def focus(self, entry: Entry) -> None:
        """Load the entry's weights, in place so that compiled code stays valid."""
        wanted = (entry.member, entry.share, -1 if self.pool else entry.number)
        if wanted == self._loaded:
            return
        if self.pool is None:
            state = self._make(self.run.generator("network", entry.number)).state_dict()
        else:
            state = self.pool.blend(entry.member, entry.share)
        self.net.load_state_dict(state)
        self._loaded = wanted

    def features(self, images: Tensor) -> Tensor:
        """(n, c, h, w) in network space -> (n, d) float32, unit length if ``normalize``."""
        if self.run.on_gpu:
            images = images.to(memory_format=torch.channels_last)
        with torch.autocast(
            self.run.device.split(":")[0], torch.bfloat16, enabled=self.run.precision == "bf16"
        ):
            raw = self._call(images)
        found = raw.float() if raw.dtype == torch.bfloat16 else raw
        return nn.functional.normalize(found, dim=1, eps=1e-12) if self.normalize else found

    def image_bytes(self, image: Tensor) -> int:
        """Measure the bytes that autograd keeps for one RGB 0-1 image (1, c, h, w)."""

        def look(n: int) -> Tensor:
            return self.see(image.detach().repeat(n, 1, 1, 1).requires_grad_(True), None, {})

        return bytes_per_image(look)

    def see(self, images: Tensor, dsa: DSA | None, augment: dict[str, Tensor]) -> Tensor:
        """RGB 0-1 images -> features, through the transform and an entry's augmentation."""
        moved = self.transform.forward(images)
        return self.features(dsa.apply(moved, augment) if dsa is not None else moved)


class RealSide:
    """Entries of the real side, built on first use, kept in memory and on disk.

    Args:
        eye: the network through which both sides are seen.
        embed: features (n, d) and entry -> (n, q); class means of it are the table. ``None`` keeps
            the features themselves (the exact kernel distances need them).
        frequencies: entry number, dimension -> (T, d) or None.
        facts: JSON-like facts that determine ``embed`` and ``frequencies``, for the cache key.
        batch_real: real images per class in an entry, 0 = all of them.
    """

    def __init__(
        self,
        real: ImageSet,
        eye: Eye,
        run: Run,
        *,
        policy: str,
        entries: int,
        refresh: int,
        batch_real: int,
        dsa: DSA | None,
        facts: dict[str, Any],
        embed: Callable[[Tensor, Entry], Tensor] | None,
        frequencies: Callable[[int, int], Tensor | None],
    ) -> None:
        check_value("real_side", policy, Policy)
        check_value("entries", entries, Count)
        check_value("refresh", refresh, Every)
        check_value("batch_real", batch_real, Part)
        self.real, self.eye, self.run, self.policy = real, eye, run, policy
        self.entries, self.refresh, self.batch_real = entries, refresh, batch_real
        self.dsa = dsa if policy != "features" else None
        self.embed, self.frequencies = embed, frequencies
        known = key_facts(
            "realside-3",  # raise it when networks, augmentation or embeddings change
            run,
            real.checksum,
            pool=eye.pool.key if eye.pool else eye.network,
            transform=fingerprint(eye.transform),
            normalize=eye.normalize,
            dsa=str(self.dsa),
            batch_real=batch_real,
            members=len(eye.pool) if eye.pool else 0,
            **facts,
        )
        self.cached = Cached(run.cache, "realside", known, f"{eye.network} on {real.source}")
        self.built = 0
        self.seconds_saved = 0.0  # what the tables read from the cache once took
        self._fits = Portion("images", "a network's pass over the real set")
        self._rows = Portion("rows", "class means of the real set's features")
        self._kept: dict[int, Entry] = {}
        self._warned = False
        self._image_bytes: int | None = None
        self._order = torch.argsort(real.labels, stable=True)

    def number_at(self, step: int) -> int:
        """Number of the entry that a step looks at."""
        if self.policy == "fresh":
            return step
        size = (
            min(self.entries, len(self.eye.pool))
            if self.policy == "features" and self.eye.pool
            else self.entries
        )
        if self.policy == "rolling":
            draw = torch.randint(size, (1,), generator=self.run.generator("entry", step))
            return step // self.refresh + int(draw)
        turn = torch.randperm(size, generator=self.run.generator("entry", step // size))
        return int(turn[step % size])

    def at(self, step: int) -> Entry:
        """Return the entry of a step, with its network loaded into the eye."""
        number = self.number_at(step)
        if self.policy == "rolling":  # entries that have left the window
            for old in [n for n in self._kept if n < step // self.refresh]:
                del self._kept[old]
                (self.cached.folder / _name(old)).unlink(missing_ok=True)  # never looked at again
        entry = self._kept.get(number) or self._build(number)
        self.eye.focus(entry)
        if self.policy == "features" and self.embed is not None:
            return self._embedded(entry, step)
        # not kept in the entry: T x d floats would dwarf the table they belong to
        return replace(entry, frequencies=self.frequencies(number, self.eye.dim))

    def plan(self, number: int) -> Entry:
        """Draw network, blend and augmentation of an entry; nothing is computed yet."""
        pool, member, share = self.eye.pool, -1, 0.0
        if pool is not None:
            turn = torch.randperm(
                len(pool), generator=self.run.generator("member", number // len(pool))
            )
            member = int(turn[number % len(pool)])
            share = float(torch.rand((), generator=self.run.generator("blend", number)))
        augment: dict[str, Tensor] = {}
        if self.dsa is not None:
            augment = self.dsa.draw(
                1,
                self.real.shape[1:],
                self.run.generator("augment", number),
                siamese=True,
                device=self.run.device,
            )
        return Entry(number, member, share, augment)

    def _build(self, number: int) -> Entry:
        entry = self.plan(number)
        if self.policy == "fresh":
            self._kept.clear()
        if not self._read(entry):
            began = time.monotonic()
            self._compute(entry)
            self._write(entry, time.monotonic() - began)
        self._make_room(entry)
        self._kept[number] = entry
        return entry

    def _make_room(self, entry: Entry) -> None:
        """Let the oldest feature banks go beyond half the memory budget; they are built again."""
        size = sum(t.nbytes for t in (entry.bank, entry.stack) if t is not None)
        most = max(1, self.run.budget.kept // size) if size else len(self._kept) + 1
        if len(self._kept) >= most and not self._warned:
            self._warned = True
            logger.warning(
                "%d feature banks of %.2f GB exceed half of memory_gb = %g; some are built again "
                "and again; lower entries to %d or raise memory_gb",
                self.entries, size / 1e9, self.run.memory_gb, most,
            )  # fmt: skip
        while len(self._kept) >= most:
            del self._kept[next(iter(self._kept))]

    def _positions(self, number: int) -> Tensor:
        """Class-sorted positions of an entry's real images; small classes give all they have."""
        if not self.batch_real:
            return self._order
        draw = self.run.generator("batch_real", number)
        chosen = []
        for label in range(self.real.num_classes):
            own = self.real.of_class(label)
            chosen.append(own[torch.randperm(len(own), generator=draw)[: self.batch_real]])
        return torch.cat(chosen)

    @torch.no_grad()
    def _compute(self, entry: Entry) -> None:
        self.built += 1
        self.eye.focus(entry)
        keep = self.embed is None or self.policy == "features"
        if self.embed is not None and not keep:
            entry.frequencies = self.frequencies(entry.number, self.eye.dim)
        positions = self._positions(entry.number)
        labels = self.real.labels[positions].to(self.run.device)
        chunk = self._chunk(int(positions[0]))
        mean = SegmentMean(self.real.num_classes)
        bank = []
        for begin in range(0, len(positions), chunk):
            images = self.real.batch(positions[begin : begin + chunk], self.run.device)
            values = self._fits.over(lambda part: self._values(part, entry, keep), images)
            if keep:
                bank.append(values)
            else:
                mean.add(values, labels[begin : begin + chunk])
        if self.embed is None:
            entry.stack, entry.mask = by_class(torch.cat(bank), labels, self.real.num_classes)
        elif keep:
            entry.bank, entry.bank_labels = torch.cat(bank), labels
        else:
            entry.table, entry.frequencies = mean.mean(), None

    def _values(self, images: Tensor, entry: Entry, keep: bool) -> Tensor:
        """What is kept, or averaged over a class, of each image: features or embedding (n, q)."""
        features = self.eye.see(images, self.dsa, entry.augment)
        if self.embed is None:
            return features
        return features.half() if keep else self.embed(features, entry)

    def _chunk(self, position: int) -> int:
        """Real images per pass: what the caches like on a CPU, an eighth of the budget on a GPU."""
        if not self.run.on_gpu:
            return CPU_CHUNK
        if self._image_bytes is None:
            image = self.real.batch(torch.tensor([position]), self.run.device)
            self._image_bytes = self.eye.image_bytes(image)
        return max(CPU_CHUNK, min(4096, self.run.budget.real_pass // self._image_bytes))

    @torch.no_grad()
    def _embedded(self, entry: Entry, step: int) -> Entry:
        """Return a copy of a feature entry with this step's frequencies and class means."""
        fresh = replace(entry, frequencies=self.frequencies(step, self.eye.dim))
        assert entry.bank is not None and entry.bank_labels is not None and self.embed is not None
        mean, embed = SegmentMean(self.real.num_classes), self.embed
        for begin in range(0, len(entry.bank), 2048):
            rows = slice(begin, begin + 2048)
            values = self._rows.over(lambda z: embed(z.float(), fresh), entry.bank[rows])
            mean.add(values, entry.bank_labels[rows])
        fresh.table = mean.mean()
        return fresh

    def _read(self, entry: Entry) -> bool:
        keeps_features = self.embed is None or self.policy == "features"
        if self.policy == "fresh" or keeps_features:
            return False
        found = self.cached.recall(
            _name(entry.number),
            "making it again",
            lambda tensors, facts: (tensors["table"], float(facts["seconds"])),
        )
        if found is None:
            return False
        entry.table = found[0].to(self.run.device)
        self.seconds_saved += found[1]
        return True

    def _write(self, entry: Entry, seconds: float) -> None:
        table = entry.table
        if self.policy == "fresh" or table is None or table.nbytes > _DISK_LIMIT:
            return
        try:
            self.cached.save(_name(entry.number), {"table": table}, {}, seconds)
        except StorageError as error:  # a cache may fail without harm
            if not self._warned:
                logger.warning("%s; going on without this cache", error)
            self._warned = True


def _name(number: int) -> str:
    return f"{number:06d}.safetensors"
