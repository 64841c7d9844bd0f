"""Examples of the OpenAPI document."""

from enlarger.strict_json import Json

ID = "Zk3vB0y5Qm2xR8tWc1uJ4g"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
TOKENS: Json = {
    "input_tokens": 12,
    "input_tokens_details": {"text_tokens": 12, "image_tokens": 0},
    "output_tokens": 1024,
    "total_tokens": 1036,
}
EXTRAS: Json = {
    "id": ID,
    "model": "sd-1.5",
    "seed": 7,
    "seeds": [7],
    "recipe": {"enlarger": "1.0", "task": "generate", "model": "sd-1.5", "options": {"steps": 30}, "seeds": [7]},
    "timings": {"queue": 0.02, "load": 0.0, "inference": 4.1, "encode": 0.1},
    "consistency": None,
    "changed": None,
    "warnings": [],
}
PICTURE: Json = {
    "revised_prompt": None,
    "width": 512,
    "height": 512,
    "seed": 7,
    "format": "png",
    "flagged": None,
}
IMAGES: Json = {
    "created": 1795251600,
    "data": [{"b64_json": "iVBORw0KGgo...", **PICTURE}],
    "background": "opaque",
    "output_format": "png",
    "quality": None,
    "size": "512x512",
    "usage": TOKENS,
    "enlarger": EXTRAS,
}
JOB: Json = {
    "id": ID,
    "object": "job",
    "status": "running",
    "task": "upscale",
    "model": "bundled",
    "created": 1795251600.1,
    "started": 1795251600.3,
    "finished": None,
    "position": 0,
    "progress": 0.4,
    "stage": "predict",
    "step": 2,
    "steps": 5,
    "eta_seconds": 3.1,
    "preview_url": None,
    "result": None,
    "error": None,
}
MODEL: Json = {
    "id": "bundled",
    "object": "model",
    "created": 1795251600,
    "owned_by": "enlarger",
    "enlarger": {
        "kind": "bundled",
        "tasks": ["upscale"],
        "aliases": [],
        "unused_options": ["prompt", "negative", "steps", "guidance"],
        "input_pixels": 50_000_000,
        "output_pixels": 200_000_000,
        "loaded_bytes": None,
        "error": None,
    },
}
UPSCALE = {"prompt": "a lighthouse, highly detailed", "n": 1, "guidance_scale": 8.0}
GENERATION = {"prompt": "a lighthouse at dusk, oil on canvas", "size": "512x512", "n": 1, "seed": 7}
EDIT = {"prompt": "a straw hat", "seed": 7}
EDIT_JSON = {"images": [{"image_url": PIXEL}], "prompt": "a straw hat", "seed": 7}
VARIATION = {"n": 2}
GENERATION_STREAM = (
    ": started\n\nevent: image_generation.partial_image\n"
    'data: {"type":"image_generation.partial_image","b64_json":"...","partial_image_index":0}\n\n'
    ": denoise 20/30 eta 3.1\n\nevent: image_generation.completed\n"
    'data: {"type":"image_generation.completed","b64_json":"...","usage":{}}\n\n'
)
EDIT_STREAM = GENERATION_STREAM.replace("image_generation", "image_edit")
EVENTS = (
    'id: 3\nevent: progress\ndata: {"status":"running","progress":0.4,"stage":"denoise","step":8,"steps":20}\n\n'
    'id: 9\nevent: succeeded\ndata: {"id":"...","object":"job","status":"succeeded"}\n\n'
)
ALL_EVENTS = (
    'event: progress\ndata: {"id":"...","status":"running","progress":0.4,"stage":"denoise","step":8,"steps":20}\n\n'
    'event: succeeded\ndata: {"id":"...","object":"job","status":"succeeded"}\n\n'
)
METRICS = "# TYPE enlarger_queue_size gauge\nenlarger_queue_size 0.0\n"
