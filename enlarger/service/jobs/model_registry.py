"""The models that can be asked for, as the workers described them."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from enlarger.service.jobs.job import Task
from enlarger.service.problems import MODELS_LOADING, ProblemError, problem_error
from enlarger.service.settings import ModelSettings


@dataclass(frozen=True)
class ModelState:
    """A model of the settings, as the workers found it."""

    name: str
    kind: str | None  # None: no worker has described it yet
    tasks: tuple[Task, ...]
    aliases: tuple[str, ...]
    loaded: int | None = None  # bytes of weights in all workers; None: not loaded
    error: str | None = None  # why it cannot be used
    unused_options: tuple[str, ...] = ()  # of its requests, by their names in `requests.py`
    default_size: tuple[int, int] | None = None  # width and height of what it makes from text where nothing is said
    default_steps: Mapping[Task, int] = field(default_factory=dict[Task, int])  # of each task that has steps


@dataclass(frozen=True)
class AdapterNames:
    """What a request can add to a model, from the folder of models."""

    loras: tuple[str, ...] = ()
    styles: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """Names, each with what it adds to the prompt and to the negative prompt."""


class ModelRegistry:
    """What is known of each model. The first description stays until another worker is ready."""

    def __init__(self, models: Sequence[ModelSettings]) -> None:
        self._states = {model.name: ModelState(model.name, None, (), model.aliases) for model in models}
        self._loaded: dict[Hashable, Mapping[str, int]] = {}
        self.is_described = False
        self.adapters = AdapterNames()

    def register(self, models: Sequence[ModelState], adapters: AdapterNames = AdapterNames()) -> None:
        """A worker is ready, and says what its models are, and what requests can add to them."""
        self._states |= {model.name: model for model in models}
        self.adapters = adapters
        self.is_described = True

    def set_loaded(self, worker: Hashable, loaded: Mapping[str, int]) -> None:
        """A worker has these in memory, in bytes; empty when it has died."""
        self._loaded[worker] = dict(loaded)

    def states(self) -> list[ModelState]:
        return [self._with_loaded(state) for state in self._states.values()]

    def get(self, name: str) -> ModelState:
        """A model by name or alias. Raises ProblemError 404 `model_not_found`."""
        for state in self._states.values():
            if name in (state.name, *state.aliases):
                return self._with_loaded(state)
        known = ", ".join(self._states)
        raise problem_error(404, "model_not_found", f"there is no model {name!r}; there are {known}", "model")

    def get_for_task(self, task: Task, name: str | None) -> ModelState:
        """The model for a task. Raises ProblemError: 503 `model_loading`, 404 `model_not_found`, 400 `unsupported`."""
        if name is not None:
            model = self.get(name)  # a wrong name is wrong while the workers start, too
        if not self.is_described:
            raise ProblemError(MODELS_LOADING)
        capable = [state for state in self.states() if task in state.tasks and state.error is None]
        if name is None:
            if capable:
                return capable[0]
            text = f"no model of this service can {task}; one that can is to be added to its configuration"
            raise problem_error(400, "unsupported", text, "model")
        model = self.get(name)
        if model.error is not None:
            raise problem_error(500, "model_unusable", f"the model {model.name} cannot be used: {model.error}", "model")
        if task not in model.tasks:
            names = ", ".join(state.name for state in capable)
            way_out = (
                f"those that can: {names}" if capable else "nor can another here; serve --model NAME=PATH adds one"
            )
            text = f"the model {model.name} ({model.kind}) cannot {task}; {way_out}"
            raise problem_error(400, "unsupported", text, "model")
        return model

    def _with_loaded(self, state: ModelState) -> ModelState:
        sizes = [loaded[state.name] for loaded in self._loaded.values() if state.name in loaded]
        return replace(state, loaded=sum(sizes) if sizes else None)
