"""Where a request's pictures lie until they are a job's: received, decoded, and gone if the request is refused."""

import asyncio
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from enlarger.service.dependencies import Service
from enlarger.service.jobs.job import Job, JobSpec, job_folder, new_job_id
from enlarger.service.problems import ProblemError, problem_error
from enlarger.service.routes.parsed_request import ParsedRequest
from enlarger.service.routes.request_headers import RequestHeaders
from enlarger.service.uploads.masks import Fit
from enlarger.service.uploads.messages import DecodedImage

IMAGE_NAME, MASK_NAME = "image.png", "mask.png"

ImageSource = Path | str  # a file that was in the body, or an address


@dataclass(frozen=True)
class Workspace:
    """A job's folder before the job, and the files that were received for it."""

    id: str
    service: Service
    owner: str

    @property
    def folder(self) -> Path:
        return job_folder(self.service.settings.data, self.id)

    def spool_path(self, name: str) -> Path:
        """Where the file of a field is received."""
        return self.service.settings.data / "spool" / f"{self.id}-{name}"

    async def receive(self, source: ImageSource, name: str) -> Path:
        """A picture's bytes on disk. Raises ProblemError for too many, for none, and for addresses that are no good."""
        bounds, out = self.service.settings.bounds, self.spool_path(name)
        max_bytes = bounds.mask if name == "mask" else bounds.image
        if isinstance(source, Path):
            _take_file(source, out, max_bytes, name)
        else:
            await self.service.fetcher.fetch(source, out, name)
            self.service.metrics.download_bytes.inc(out.stat().st_size)
        return out

    async def decode_image(self, source: ImageSource, max_pixels: int, fit: Fit | None) -> DecodedImage:
        """The picture, decoded into the folder."""
        received = await self.receive(source, "image")
        return await self.service.decoder.decode_image(
            received, self.folder / IMAGE_NAME, max_pixels=max_pixels, fit=fit, owner=self.owner
        )

    async def decode_mask(
        self, source: ImageSource, decoded: DecodedImage, mode: str, resize: bool, fit: Fit | None
    ) -> DecodedImage:
        """The mask of a picture, decoded into the folder."""
        received = await self.receive(source, "mask")
        out, size = self.folder / MASK_NAME, decoded.original_size
        return await self.service.decoder.decode_mask(
            received, out, size=size, mode=mode, resize=resize, fit=fit, owner=self.owner
        )

    async def decode_alpha_mask(self, fit: Fit | None) -> DecodedImage:
        """What is transparent of the picture that was received."""
        source, out = self.spool_path("image"), self.folder / MASK_NAME
        return await self.service.decoder.decode_alpha_mask(source, out, fit=fit, owner=self.owner)

    async def submit(self, spec: JobSpec, request_headers: RequestHeaders) -> Job:
        """The job; with a key that was used before, that one's. From here on the folder is the queue's. Raises
        ProblemError where the client has gone meanwhile, or the job is not taken."""
        try:
            await request_headers.check_client()
        except ProblemError:
            await asyncio.to_thread(_remove_files, self, True)
            raise
        return await self.service.jobs.submit(
            spec,
            id=self.id,
            owner=request_headers.owner,
            attached=request_headers.attached,
            idempotency=request_headers.idempotency,
            reservation=request_headers.reservation,
        )


@asynccontextmanager
async def open_workspace(service: Service, owner: str) -> AsyncGenerator[Workspace]:
    """A new job's folder. What was received is gone at the end of the block; if it raises, the folder is too."""
    workspace = Workspace(new_job_id(), service, owner)
    try:
        await asyncio.to_thread(_make_folders, workspace)
        yield workspace
    except Exception:
        await asyncio.to_thread(_remove_files, workspace, True)
        raise
    except BaseException:  # the handler is canceled, as the service stops: the folder may be the queue's already
        asyncio.get_running_loop().run_in_executor(None, _remove_files, workspace, False)
        raise
    await asyncio.to_thread(_remove_files, workspace, False)


def fit_for(parsed: ParsedRequest) -> Fit | None:
    """How the input is brought to the size that was asked for."""
    return None if parsed.size is None else Fit(*parsed.size, parsed.mode)


def resize_notes(fit: Fit | None, decoded: DecodedImage) -> tuple[str, ...]:
    """What to say about a picture, its shape included where that was changed."""
    width, height = decoded.original_size
    if fit is None or width * fit.height == height * fit.width:
        return decoded.notes
    verb = {"stretch": "stretched", "crop": "cropped", "pad": "padded"}[fit.mode]
    others = ", ".join(mode for mode in ("stretch", "crop", "pad") if mode != fit.mode)
    note = f"the picture was {verb} from {width}x{height} to {fit.width}x{fit.height}; resize_mode can be {others} too"
    return (*decoded.notes, note)


def _make_folders(workspace: Workspace) -> None:
    workspace.spool_path("image").parent.mkdir(parents=True, exist_ok=True)
    workspace.folder.mkdir(parents=True)


def _remove_files(workspace: Workspace, with_folder: bool) -> None:
    for name in ("image", "mask"):
        workspace.spool_path(name).unlink(missing_ok=True)
    if with_folder:
        shutil.rmtree(workspace.folder, ignore_errors=True)


def _take_file(source: Path, out: Path, max_bytes: int, name: str) -> None:
    """Take a file of the body. Raises ProblemError for one that is empty or too large."""
    size = source.stat().st_size
    if size > max_bytes:
        message = f"{name}: has more than {max_bytes:,} bytes; shrink the picture or compress it better"
        raise problem_error(400, "image_file_too_large", message, name)
    if size == 0:
        raise problem_error(400, "empty_image_file", f"{name}: the file is empty, expected a picture", name)
    source.rename(out)
