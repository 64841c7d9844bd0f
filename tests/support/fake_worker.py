"""A worker process without torch or models: it speaks the protocol, and does what `options["fake"]` of a job says.

    steps, seconds   how many steps, and how long each takes
    crash            "once": ends the process in its first run; "always"; "after": once its result is in place
    hang             takes no notice of anything, a cancel neither
    fail             a fault that it fails with
    stop             the process stops, in its first run or "always"
    eat              MiB of memory that it takes, and keeps
    mute             ends without a word of the job
    preview          writes a preview at each step
    garble           writes nonsense between its lines

Command line: `--device NAME`, `--die FILE` ends at the start as long as the file's number is above 0, and lowers it,
`--slow SECONDS` is ready only then, `--load SECONDS` is how long the first job of a model waits for it.
Each run leaves a line in `runs` in the job's folder: "begin" and "end", with the process id.
"""

import argparse
import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

WRITE_LOCK = threading.Lock()
kept: list[bytes] = []


def send(**message: Any) -> None:
    with WRITE_LOCK:
        os.write(1, json.dumps(message).encode() + b"\n")


def listen(inbox: "queue.Queue[dict[str, Any]]", canceled: set[str]) -> None:
    """Read what the server says; the process ends when it says no more."""
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if message["command"] == "cancel":
            canceled.add(message["id"])
        else:
            inbox.put(message)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--die", type=Path)
    parser.add_argument("--slow", type=float, default=0)
    parser.add_argument("--load", type=float, default=0)
    options = parser.parse_args()
    if options.die is not None and (left := int(options.die.read_text())) > 0:
        options.die.write_text(str(left - 1))
        os._exit(3)
    inbox: queue.Queue[dict[str, Any]] = queue.Queue()
    canceled: set[str] = set()
    threading.Thread(target=listen, args=(inbox, canceled), daemon=True).start()
    threading.Thread(target=beat, daemon=True).start()
    start = inbox.get()
    time.sleep(options.slow)
    send(event="ready", device=options.device, models=[describe_model(model) for model in start["models"]])
    send(event="idle")
    loaded: dict[str, int] = {}
    while True:
        message = inbox.get()
        if message["command"] == "run":
            run(Path(start["data"]), message["jobs"], canceled, loaded, options.load)
            send(event="idle")
        else:
            note_command(Path(start["data"]), message)
            time.sleep(options.load)
            change(loaded, message["model"], message["command"] == "load")
            send(event="idle")


def beat() -> None:
    while True:
        send(event="alive")
        time.sleep(0.2)


def note_command(data: Path, message: dict[str, Any]) -> None:
    """A line in the file `commands` for each model that it is told to load or drop."""
    with (data / "commands").open("a") as file:
        file.write(f"{message['command']} {message['model']}\n")


def describe_model(model: dict[str, Any]) -> dict[str, Any]:
    tasks = ["upscale"] if model["path"] == "bundled" else ["generate", "refine", "inpaint"]
    kind = "bundled" if model["path"] == "bundled" else "sd"
    error = "no such file" if model["path"] == "missing" else None
    return {"name": model["name"], "kind": kind, "tasks": tasks, "aliases": model["aliases"], "error": error}


def change(loaded: dict[str, int], model: str, load: bool) -> None:
    loaded.pop(model, None)
    if load:
        loaded[model] = 1000
    send(event="models", loaded=loaded)


def run(data: Path, jobs: list[dict[str, Any]], canceled: set[str], loaded: dict[str, int], seconds: float) -> None:
    model = jobs[0]["spec"]["model"]
    if model not in loaded:
        send(event="loading", model=model)
        time.sleep(seconds)
        change(loaded, model, True)
    send(event="measured", name="batch", size=len(jobs))
    for job in jobs:
        note(data, job["id"], "begin")
        send(event="started", id=job["id"])
    plan = jobs[0]["spec"]["options"].get("fake", {})
    left = denoise(data, jobs, plan, canceled)
    if plan.get("mute"):
        return
    for job in left:
        own = job["spec"]["options"].get("fake", {})
        if "fail" in own:
            send(event="failed", id=job["id"], problem=own["fail"])
            continue
        finish(data, job, own)
        send(event="done", id=job["id"])


def denoise(data: Path, jobs: list[dict[str, Any]], plan: dict[str, Any], canceled: set[str]) -> list[dict[str, Any]]:
    """All steps; the jobs that are left at the end."""
    steps, left = plan.get("steps", 3), list(jobs)
    for i in range(steps):
        time.sleep(plan.get("seconds", 0.002))
        if plan.get("garble"):
            os.write(1, b"Loading: 50%\n\xff\xfe\n[]\n{}\n" + b"x" * (3 << 20) + b"\n")
        crash(data, left, plan)
        stop(data, left, plan)
        while plan.get("hang"):
            time.sleep(1)
        for job in [job for job in left if job["id"] in canceled]:
            left.remove(job)
            send(event="canceled", id=job["id"])
        if not left:
            break
        for job in left:
            send(event="progress", id=job["id"], stage="denoise", done=i + 1, total=steps)
            if plan.get("preview"):
                (data / "jobs" / job["id"] / f"preview-{i}.png").write_bytes(b"png")
                send(event="preview", id=job["id"], file=f"preview-{i}.png", index=i)
    return left


def crash(data: Path, jobs: list[dict[str, Any]], plan: dict[str, Any]) -> None:
    for job in jobs:
        own = job["spec"]["options"].get("fake", {}).get("crash") or plan.get("crash")
        begun = (data / "jobs" / job["id"] / "runs").read_text().count("begin")
        if own == "always" or (own == "once" and begun == 1):
            os._exit(9)


def stop(data: Path, jobs: list[dict[str, Any]], plan: dict[str, Any]) -> None:
    begun = (data / "jobs" / jobs[0]["id"] / "runs").read_text().count("begin")
    if plan.get("stop") == "always" or (plan.get("stop") == "once" and begun == 1):
        os.kill(os.getpid(), signal.SIGSTOP)
    if "eat" in plan:
        kept.append(b"x" * (plan["eat"] << 20))


def finish(data: Path, job: dict[str, Any], plan: dict[str, Any]) -> None:
    """The result, in place whole or not at all; an earlier one is kept."""
    folder, spec = data / "jobs" / job["id"], job["spec"]
    width, height = spec["size"] or (8, 8)
    image = {"file": "result-0.png", "width": width, "height": height, "seed": spec["options"].get("seed", 0)}
    done = {"images": [image | {"format": "png", "bytes": 3, "flagged": None}], "model": spec["model"], "notes": []}
    done |= {"timings": {"load": 0.0, "inference": 0.01, "encode": 0.0}, "tokens": os.getpid()}
    (folder / "result-0.png").write_bytes(b"png")
    part = folder / f".done-{os.getpid()}"
    part.write_text(json.dumps(done))
    try:
        os.link(part, folder / "done.json")
        note(data, job["id"], "end")
    except FileExistsError:
        note(data, job["id"], "again")
    part.unlink()
    if plan.get("crash") == "after":
        os._exit(9)


def note(data: Path, id: str, word: str) -> None:
    with (data / "jobs" / id / "runs").open("a") as stream:
        stream.write(f"{word} {os.getpid()}\n")


if __name__ == "__main__":
    main()
