"""Where a request's pictures lie until they are a job's: received, decoded, and gone if the request is refused."""

import asyncio
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import UploadFile

from enlarger.service.core import Service
from enlarger.service.faults import refuse
from enlarger.service.jobs import Ask, Job, folder_of, new_id
from enlarger.service.pictures.decode import Decoded
from enlarger.service.pictures.fetch import write_data_url
from enlarger.service.pictures.masks import Fit
from enlarger.service.routes.asks import Wish
from enlarger.service.routes.order import Order

IMAGE, MASK = "image.png", "mask.png"
PIECE = 1 << 20

Source = UploadFile | str  # a file of a form, or an address


@dataclass(frozen=True)
class Workspace:
    """A job's folder before the job, and the files that were received for it."""

    id: str
    service: Service

    @property
    def folder(self) -> Path:
        return folder_of(self.service.settings.data, self.id)

    def spooled(self, name: str) -> Path:
        """Where the file of a field is received."""
        return self.service.settings.data / "spool" / f"{self.id}-{name}"

    async def receive(self, source: Source, name: str) -> Path:
        """A picture's bytes on disk. Raises Refused for too many, for none, and for addresses that are no good."""
        bounds, out = self.service.settings.bounds, self.spooled(name)
        most = bounds.mask if name == "mask" else bounds.image
        if isinstance(source, UploadFile):
            await asyncio.to_thread(_copy, source, out, most, name)
        elif source[:5].lower() == "data:":
            await asyncio.to_thread(write_data_url, source, out, most, name)
        else:
            await self.service.fetcher.fetch(source, out, name)
        return out

    async def picture(self, source: Source, most: int, fit: Fit | None) -> Decoded:
        """The picture, decoded into the folder."""
        spooled = await self.receive(source, "image")
        return await self.service.decoder.picture(spooled, self.folder / IMAGE, most=most, fit=fit)

    async def mask(self, source: Source, picture: Decoded, mode: str, resize: bool, fit: Fit | None) -> Decoded:
        """The mask of a picture, decoded into the folder."""
        spooled = await self.receive(source, "mask")
        out, size = self.folder / MASK, picture.original
        return await self.service.decoder.mask(spooled, out, size=size, mode=mode, resize=resize, fit=fit)

    async def mask_of_picture(self, fit: Fit | None) -> Decoded:
        """What is transparent of the picture that was received."""
        return await self.service.decoder.mask_of_picture(self.spooled("image"), self.folder / MASK, fit=fit)

    async def submit(self, ask: Ask, order: Order) -> Job:
        """The job; with a key that was used before, that one's. From here on the folder is the queue's."""
        return await self.service.queue.submit(
            ask, id=self.id, owner=order.owner, attached=order.attached, key=order.key, claim=order.claim
        )


@asynccontextmanager
async def workspace(service: Service) -> AsyncGenerator[Workspace]:
    """A new job's folder. What was received is gone at the end of the block; if it raises, the folder is too."""
    room = Workspace(new_id(), service)
    try:
        await asyncio.to_thread(_make, room)
        yield room
    except Exception:
        await asyncio.to_thread(_remove, room, True)
        raise
    except BaseException:  # the handler is canceled, as the service stops: the folder may be the queue's already
        asyncio.get_running_loop().run_in_executor(None, _remove, room, False)
        raise
    await asyncio.to_thread(_remove, room, False)


def fit_of(wish: Wish) -> Fit | None:
    """How the input is brought to the size that was asked for."""
    return None if wish.size is None else Fit(*wish.size, wish.mode)


def notes_of(fit: Fit | None, picture: Decoded) -> tuple[str, ...]:
    """What to say about a picture, its shape included where that was changed."""
    width, height = picture.original
    if fit is None or width * fit.height == height * fit.width:
        return picture.notes
    how = {"stretch": "stretched", "crop": "cropped", "pad": "padded"}[fit.mode]
    others = ", ".join(mode for mode in ("stretch", "crop", "pad") if mode != fit.mode)
    said = f"the picture was {how} from {width}x{height} to {fit.width}x{fit.height}; resize_mode can be {others} too"
    return (*picture.notes, said)


def _make(room: Workspace) -> None:
    room.spooled("image").parent.mkdir(parents=True, exist_ok=True)
    room.folder.mkdir(parents=True)


def _remove(room: Workspace, whole: bool) -> None:
    for name in ("image", "mask"):
        room.spooled(name).unlink(missing_ok=True)
    if whole:
        shutil.rmtree(room.folder, ignore_errors=True)


def _copy(upload: UploadFile, out: Path, most: int, name: str) -> None:
    """The file of a form, copied. Raises Refused for one that is empty or too large."""
    size = 0
    with out.open("xb") as stream:
        while piece := upload.file.read(PIECE):
            size += len(piece)
            if size > most:
                message = f"{name}: has more than {most:,} bytes; shrink the picture or compress it better"
                raise refuse(400, "image_file_too_large", message, name)
            stream.write(piece)
    if size == 0:
        raise refuse(400, "empty_image_file", f"{name}: the file is empty, expected a picture", name)
