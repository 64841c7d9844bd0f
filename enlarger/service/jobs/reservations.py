"""Places in the queue that requests hold while their pictures arrive and are decoded."""

import math
import time
from dataclasses import dataclass

UPLOAD_SECONDS = 0.25  # for a body that is still arriving: slow senders must not hold places


@dataclass(eq=False)
class Reservation:
    """One place. It counts until it is released, or until its body has been too long on the way."""

    owner: str
    expires_at: float

    @property
    def is_active(self) -> bool:
        return time.monotonic() < self.expires_at

    def confirm(self) -> None:
        """The body has come whole: the place stays, unless it was lost meanwhile."""
        if self.is_active:
            self.expires_at = math.inf

    def release(self) -> bool:
        """Give the place up, to a job or for good; whether it was still held."""
        was_active, self.expires_at = self.is_active, -math.inf
        return was_active


class Reservations:
    """All places that are held."""

    def __init__(self) -> None:
        self._active: set[Reservation] = set()

    def reserve(self, owner: str) -> Reservation:
        reservation = Reservation(owner, time.monotonic() + UPLOAD_SECONDS)
        self._active.add(reservation)
        return reservation

    def active_owners(self) -> list[str]:
        """Whose places are held now."""
        self._active = {reservation for reservation in self._active if reservation.is_active}
        return [reservation.owner for reservation in self._active]
