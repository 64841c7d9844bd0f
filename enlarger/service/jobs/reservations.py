"""Places in the queue that requests hold from the moment at which their bodies are whole."""

from dataclasses import dataclass, field


@dataclass(eq=False)
class Reservation:
    """One place, until it is released."""

    owner: str
    held: "set[Reservation]" = field(repr=False)  # all places that are

    def release(self) -> bool:
        """Give the place up, to a job or for good; whether it was still held."""
        was_held = self in self.held
        self.held.discard(self)
        return was_held


class Reservations:
    """All places that are held."""

    def __init__(self) -> None:
        self._held: set[Reservation] = set()

    def reserve(self, owner: str) -> Reservation:
        reservation = Reservation(owner, self._held)
        self._held.add(reservation)
        return reservation

    def owners(self) -> list[str]:
        """Whose places are held now."""
        return [reservation.owner for reservation in self._held]
