"""The models that can be asked for, as the workers described them."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, get_args

from enlarger.service.faults import refuse
from enlarger.service.jobs import Task
from enlarger.service.queue.state import ModelState
from enlarger.service.settings import ModelSettings

TASKS: frozenset[str] = frozenset(get_args(Task))


class Catalogue:
    """What is known of each model. The first description stays until another worker is ready."""

    def __init__(self, models: Sequence[ModelSettings]) -> None:
        self._states = {model.name: ModelState(model.name, None, (), model.aliases) for model in models}
        self._loaded: dict[Hashable, Mapping[str, int]] = {}
        self.known = False

    def describe(self, models: Sequence[Mapping[str, Any]]) -> None:
        """A worker is ready, and says what its models are."""
        for found in models:
            tasks: tuple[Task, ...] = tuple(task for task in found["tasks"] if task in TASKS)
            state = ModelState(found["name"], found["kind"], tasks, tuple(found["aliases"]), None, found["error"])
            self._states[state.name] = state
        self.known = True

    def load(self, worker: Hashable, loaded: Mapping[str, int]) -> None:
        """A worker holds these, in bytes; empty when it has died."""
        self._loaded[worker] = dict(loaded)

    def states(self) -> list[ModelState]:
        return [self._with_loaded(state) for state in self._states.values()]

    def named(self, name: str) -> ModelState:
        """A model by name or alias. Raises Refused 404 `model_not_found`."""
        for state in self._states.values():
            if name in (state.name, *state.aliases):
                return self._with_loaded(state)
        known = ", ".join(self._states)
        raise refuse(404, "model_not_found", f"there is no model {name!r}; there are {known}", "model")

    def able(self, task: Task, name: str | None) -> ModelState:
        """The model for a task. Raises Refused: 503 `model_loading`, 404 `model_not_found`, 400 `unsupported`."""
        if name is not None:
            found = self.named(name)  # a wrong name is wrong while the workers start, too
        if not self.known:
            raise refuse(503, "model_loading", "the models are being read; ask again in a moment", retry_after=2)
        can = [state for state in self.states() if task in state.tasks and state.error is None]
        if name is None:
            if can:
                return can[0]
            text = f"no model of this service can {task}; one that can is to be added to its configuration"
            raise refuse(400, "unsupported", text, "model")
        found = self.named(name)
        if found.error is not None:
            raise refuse(500, "model_unusable", f"the model {found.name} cannot be used: {found.error}", "model")
        if task not in found.tasks:
            others = ", ".join(state.name for state in can) or "no other can either"
            text = f"the model {found.name} ({found.kind}) cannot {task}; those that can: {others}"
            raise refuse(400, "unsupported", text, "model")
        return found

    def _with_loaded(self, state: ModelState) -> ModelState:
        sizes = [loaded[state.name] for loaded in self._loaded.values() if state.name in loaded]
        fields = (state.name, state.kind, state.tasks, state.aliases)
        return ModelState(*fields, sum(sizes) if sizes else None, state.error)
