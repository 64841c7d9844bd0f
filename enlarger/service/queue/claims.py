"""Places in the queue that requests hold while their pictures arrive and are decoded."""

import math
import time
from dataclasses import dataclass

ARRIVING = 0.25  # seconds that a place is held for a body that is still arriving: slow senders must not hold places


@dataclass(eq=False)
class Claim:
    """One place. It counts until it is released, or until its body has been too long on the way."""

    owner: str
    until: float

    @property
    def counts(self) -> bool:
        return time.monotonic() < self.until

    def received(self) -> None:
        """The body has come whole: the place is kept, unless it was lost meanwhile."""
        if self.counts:
            self.until = math.inf

    def release(self) -> bool:
        """Give the place up, to a job or for good; whether it was still held."""
        held, self.until = self.counts, -math.inf
        return held


class Claims:
    """All places that are held."""

    def __init__(self) -> None:
        self._held: set[Claim] = set()

    def take(self, owner: str) -> Claim:
        claim = Claim(owner, time.monotonic() + ARRIVING)
        self._held.add(claim)
        return claim

    def owners(self) -> list[str]:
        """Whose places are held now."""
        self._held = {claim for claim in self._held if claim.counts}
        return [claim.owner for claim in self._held]
