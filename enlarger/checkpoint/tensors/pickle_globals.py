"""What a pickled checkpoint may name: what makes tensors, plain values, and what trainers keep beside their weights."""

import torch

ORDERED_DICT = "collections.OrderedDict"
REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
REBUILD_OLD_TENSOR = "torch._utils._rebuild_tensor"  # of torch before 0.4: without gradient and hooks
PARAMETER_DICT = "torch.nn.modules.container.ParameterDict"  # of textual inversions: a dictionary in a module's form
REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
CODECS_ENCODE = "_codecs.encode"
STORAGE_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
# What Lightning's checkpoints carry beside weights (a callback's name, its best score): made into inert things.
LIGHTNING_CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
NUMPY_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
NUMPY_ARRAYS = (
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.numeric._frombuffer",
    "numpy._core.numeric._frombuffer",
    "numpy.ndarray",
)
SETTINGS_CLASSES = (  # of what trainers keep of their run: paths, times, arguments
    "argparse.Namespace",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.PurePosixPath",
    "pathlib._local.PosixPath",
    "datetime.datetime",
    "datetime.timedelta",
    "datetime.date",
    "datetime.timezone",
    "decimal.Decimal",
    "uuid.UUID",
    "types.SimpleNamespace",
    "collections.Counter",
    "__builtin__.xrange",
    "builtins.range",
    "__builtin__.complex",
    "builtins.complex",
    "__builtin__.frozenset",
    "builtins.frozenset",
)
INERT_CALLABLES = (*NUMPY_SCALARS, *NUMPY_ARRAYS, *SETTINGS_CLASSES)
INERT_GLOBALS = (LIGHTNING_CALLBACK, *INERT_CALLABLES)
# Plain values, which torch's own reader makes: their sizes are those of the lists and texts that they are made of.
VALUE_CLASSES = {"__builtin__.set", "builtins.set", "torch.Size", "torch.device"}
DTYPE_NAMES = {str(dtype) for dtype in STORAGE_DTYPES.values()}
ALLOWED_GLOBALS = {
    ORDERED_DICT,
    REBUILD_TENSOR,
    REBUILD_OLD_TENSOR,
    REBUILD_PARAMETER,
    PARAMETER_DICT,
    CODECS_ENCODE,
    *STORAGE_DTYPES,
    *INERT_GLOBALS,
    *VALUE_CLASSES,
    *DTYPE_NAMES,
}
