"""Options of the verbs: one per field of a request, whose help, limits and default they take; and those verbs share."""

import json
import math
import secrets
import types
from collections.abc import Callable, Sequence, Set
from dataclasses import Field, fields
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from enlarger.cli.loading import file_of, read_folder
from enlarger.cli.terminal import print_lines
from enlarger.requests import DEFAULTS, RANDOM_SEED, RANDOM_SEED_RANGE, OptionLimits
from enlarger.strict_json import Json

Model = Annotated[
    str | None,
    typer.Option(help="folder of a model in diffusers' layout, or a name", show_default="the bundled model"),
]
Device = Annotated[str, typer.Option(help="where to compute: auto, cpu, cuda, cuda:1, mps")]
Precision = Annotated[
    str, typer.Option(help="number format: auto, float32, bfloat16, float16; int8 with --engine openvino")
]
Engine = Annotated[
    Literal["torch", "compile", "openvino"],
    typer.Option(help="what computes the networks: torch, torch.compile, or OpenVINO on a CPU"),
]
JsonLines = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace files that exist; never an input")]
Strip = Annotated[
    Literal["none", "gps", "all"],
    typer.Option(
        help="what of the input's EXIF, XMP, IPTC and resolution is left out: the place, or, if alone, all of it"
    ),
]
Salvage = Annotated[bool, typer.Option("--salvage", help="of pictures cut short, take the rows that are there")]
ToneMap = Annotated[
    bool,
    typer.Option("--tone-map", help="of TIFFs of floats or 32-bit integers, press bright light together, not scale"),
]
Kind = Annotated[
    Literal["png", "jpg", "webp", "tif", "same"] | None,
    typer.Option(
        "--format", help="kind of file to write; same: the input's", show_default="png, or what --output says"
    ),
]
Cmyk = Annotated[
    bool, typer.Option("--cmyk", help="CMYK pictures in CMYK again, by their own profile; TIFF files only")
]
Quality = Annotated[int, typer.Option(min=1, max=100, help="of JPEG, WebP and AVIF files")]
ALL_FRAMES = "frames"  # the kind of files that hold every frame of their input: the input's own
AllFrames = Annotated[
    bool, typer.Option("--all-frames", help="every frame and page, into one file of the input's kind, with its timing")
]
NewKind = Annotated[
    Literal["png", "jpg", "webp", "tif"] | None,
    typer.Option("--format", help="kind of file to write", show_default="png, or what --output says"),
]
SkipExisting = Annotated[bool, typer.Option("--skip-existing", help="leave alone what has a result, whatever it is")]
Background = Annotated[
    str | None,
    typer.Option(
        metavar="COLOUR",
        help="under transparent parts, in files that hold none",
        show_default=False,
    ),
]
Again = Annotated[bool, typer.Option("--again", help="also the results of earlier runs that lie in a folder")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="say nothing but errors")]
Recursive = Annotated[
    bool, typer.Option("--recursive", "-r", help="also the folders in a folder, as a tree in --output")
]


Variant = Annotated[str | None, typer.Option(help="which of a folder's weight files, such as fp16")]
Prediction = Annotated[
    Literal["epsilon", "v_prediction"] | None,
    typer.Option(help="what a single file of Stable Diffusion 2 predicts: epsilon (512) or v_prediction (768)"),
]
ALLOW_PICKLE = typer.Option("--allow-pickle", help="read .ckpt and .pth files, through an allow-list")
AllowPickle = Annotated[bool, ALLOW_PICKLE]
LOADING_OPTIONS: Json = {  # what a checkpoint's path cannot say, by the fields of `Checkpoint`
    "variant": Variant,
    "prediction": Prediction,
    "allow_pickle": Annotated[bool | None, ALLOW_PICKLE],
    "loras": Annotated[
        list[str] | None, typer.Option("--lora", help="LoRA file, or FILE:SCALE; may be repeated", show_default=False)
    ],
    "vae": Annotated[str | None, typer.Option("--vae", help="autoencoder instead of a single file's own")],
    "inversions": Annotated[
        list[str] | None,
        typer.Option("--inversion", help="file of a textual inversion, or FILE:TOKEN; may be repeated"),
    ],
    "mmap": Annotated[
        bool | None,
        typer.Option(
            "--mmap/--no-mmap",
            help="leave weights in their files, or copy them so that the files may be written to",
            show_default="--mmap",
        ),
    ],
}


MODELS = typer.Option(
    "--models",
    envvar="ENLARGER_MODELS_FOLDER",
    metavar="DIR",
    help="folder of models as web UIs lay it out, where --model, --lora and <lora:name:0.8> are looked up",
)
STYLES_FILE = typer.Option("--styles", metavar="FILE", help="CSV file of styles", show_default="styles.csv of --models")
FOLDER_OPTIONS: Json = {
    "models": Annotated[Path | None, MODELS],
    "styles_file": Annotated[Path | None, STYLES_FILE],
}
STYLES: Json = {
    "styles": Annotated[
        list[str] | None, typer.Option("--style", help="name of a style; may be repeated", show_default=False)
    ]
}
EXPLAIN: Json = {
    "explain": Annotated[
        bool | None, typer.Option("--explain", help="print device, precision, layout and threads, and why, and end")
    ]
}
NAMES_OF_MODELS = ("refiner", "upscaler")  # arguments that may be names in --models, beside --model


def request_options(
    request: type, task: str, **defaults: object
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb one option per field of `request`; it receives their values as the mapping `options`.

    Options on how to read its `model` make that a `Checkpoint`.

    Its own come before those that all requests have. `task` is the first part of the names in `DEFAULTS` that stand for
    None; `defaults` replace those of the request.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(request)
        ordered_fields = sorted(fields(request), key=lambda item: item.name not in vars(request)["__annotations__"])
        styles = STYLES if "styles" in hints else Json()
        own = signature(verb).parameters
        explain = EXPLAIN if "precision" in own and "explain" not in own else Json()  # a verb may say more itself
        loading_parameters = _keyword_parameters(LOADING_OPTIONS | FOLDER_OPTIONS | styles | explain)
        request_parameters = [
            field_parameter(item, hints[item.name], task, defaults.get(item.name, item.default))
            for item in ordered_fields
            if "limits" in item.metadata
        ]

        @wraps(verb)
        def with_options(context: typer.Context, **arguments: Any) -> None:
            if any(arguments.pop(name) for name in explain):
                asked = (arguments[name] for name in ("device", "precision", "engine"))
                print_lines(explain_runtime(*asked, json_lines=arguments["json_lines"]))
                return
            options = {parameter.name: arguments.pop(parameter.name) for parameter in request_parameters}
            options |= {name: arguments.pop(name) or () for name in styles}
            options["seed"] = _seed(options["seed"], quiet=arguments.get("quiet", False))
            typed = {name for name in arguments if _is_typed(context, name)}
            if "key" in typed and arguments["server"] is None:
                raise typer.BadParameter("--key is given, but not --server; it is the key of a service")
            _find_models(arguments, typed)
            verb(**arguments, options=options)

        verb_parameters = [
            parameter for parameter in signature(verb).parameters.values() if parameter.name != "options"
        ]
        described: Any = with_options
        of_typer = Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)
        described.__signature__ = Signature([*verb_parameters, of_typer, *loading_parameters, *request_parameters])
        described.__annotations__ = {
            parameter.name: parameter.annotation
            for parameter in (*verb_parameters, of_typer, *loading_parameters, *request_parameters)
        }
        return with_options

    return decorate


def describe_runtime(device: str, precision: str, engine: str) -> Json:
    """How networks would run, each choice with its reason, as JSON."""
    from enlarger.runtime.choices import choose  # torch comes with it
    from enlarger.runtime.engines.named import INT8

    described = choose(device, "auto" if precision == INT8 else precision).describe()
    if precision == INT8:
        described["precision"] = f"{INT8}: asked for, quantised from {described['precision']}"
    return {"runtime": described | {"engine": f"{engine}: {'as it is' if engine == 'torch' else 'asked for'}"}}


def explain_runtime(device: str, precision: str, engine: str, *, json_lines: bool) -> list[str]:
    """The same as lines."""
    described = describe_runtime(device, precision, engine)
    if json_lines:
        return [json.dumps(described)]
    return [f"{name} {about}" for name, about in described["runtime"].items()]


def _keyword_parameters(options: Json) -> list[Parameter]:
    return [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=kind) for name, kind in options.items()]


def _is_typed(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line, and is not of a variable or a default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _find_models(arguments: Json, typed: Set[str]) -> None:
    """Make `model` a `Checkpoint` where options say how to read it, and paths of names in the folder of models.

    The folder that a variable names is for models of this machine, and not for those of a service.
    """
    loading = {name: value for name in LOADING_OPTIONS if (value := arguments.pop(name)) is not None}
    models, styles = (arguments.pop(name) for name in FOLDER_OPTIONS)
    if arguments.get("server") is not None and "models" not in typed:
        models = None
    if arguments["model"] is None:
        if "models" in typed:
            raise typer.BadParameter("--models is given, but not --model; give the name of one in it")
        if loading:
            raise typer.BadParameter(f"--model is missing; {', '.join(sorted(loading))} say how to read it")
        if styles is not None:
            raise typer.BadParameter("--styles is given, but not --model; the bundled model takes no prompt")
        return
    if not loading and models is None and styles is None:
        return
    from enlarger.checkpoint.model_folder import checkpoint_path
    from enlarger.tasks.loading.load import Checkpoint  # torch comes with it

    allow_pickle = loading.get("allow_pickle") is True
    folder = read_folder(models, styles, allow_pickle=allow_pickle)
    if "loras" in loading:
        loading["loras"] = [_parse_lora(argument) for argument in loading["loras"]]
    if "inversions" in loading:
        loading["inversions"] = [_parse_inversion(argument) for argument in loading["inversions"]]
    if "vae" in loading and folder is not None and not Path(loading["vae"]).exists():
        loading["vae"] = folder.find(loading["vae"], "vae")
    for name in NAMES_OF_MODELS:
        if arguments.get(name) is not None:
            arguments[name] = file_of(checkpoint_path(folder, arguments[name]), allow_pickle=allow_pickle)
    if (
        any(isinstance(arguments.get(name), Checkpoint) for name in NAMES_OF_MODELS)
        and Path(arguments["model"]).is_dir()
    ):
        loading["allow_pickle"] = bool({"loras", "inversions"} & loading.keys())  # it is said of the others
    arguments["model"] = Checkpoint(arguments["model"], **loading, models=folder)


def _seed(asked: int, *, quiet: bool) -> int:
    """The seed; one that is drawn is said, unless all is to be quiet."""
    if asked != RANDOM_SEED:
        return asked
    seed = secrets.randbelow(RANDOM_SEED_RANGE)
    if not quiet:
        typer.echo(f"seed {seed}, drawn at random; --seed {seed} makes the same again", err=True)
    return seed


def _parse_lora(argument: str) -> tuple[str, float]:
    """FILE or FILE:SCALE."""
    file, colon, scale = argument.rpartition(":")
    try:
        return (file, float(scale)) if colon else (argument, 1.0)
    except ValueError:
        return argument, 1.0  # the colon is a part of the name


def _parse_inversion(argument: str) -> tuple[str, str | None]:
    """FILE or FILE:TOKEN."""
    file, colon, token = argument.rpartition(":")
    is_named = bool(colon and token.strip()) and not Path(argument).exists() and Path(file).exists()
    return (file, token.strip()) if is_named else (argument, None)


def field_parameter(item: "Field[Any]", hint: Any, task: str, default: object) -> Parameter:
    """The option of a dataclass field that knows its limits."""
    limits: OptionLimits = item.metadata["limits"]
    kind: Any = Literal[limits.choices] if limits.choices else _scalar_type(hint)
    number = int if kind is int else float
    option = typer.Option(
        help=limits.help,
        min=number(limits.least) if math.isfinite(limits.least) else None,
        max=number(limits.most) if math.isfinite(limits.most) else None,
        show_default=_default_help(item.name, task) if default is None else default != "",
    )
    annotation: Any = Annotated[kind | None if default is None else kind, option]
    return Parameter(item.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _scalar_type(hint: Any) -> Any:
    """The type of one value: `int | Sequence[int]` and `int | None` are int on the command line."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    return next(kind for kind in get_args(hint) if kind is not type(None) and get_origin(kind) is not Sequence)


def _default_help(name: str, task: str) -> str | bool:
    """What None stands for, as text for the help; False hides the default."""
    defaults_by_model = {
        key.rpartition("/")[2]: values for key, values in DEFAULTS.items() if key.partition("/")[0] == task
    }
    descriptions = [
        f"{model} {_format_value(values[name])}" for model, values in defaults_by_model.items() if name in values
    ]
    return ", ".join(descriptions) or False


def _format_value(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


Options = Json
