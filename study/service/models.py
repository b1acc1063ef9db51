"""Models as files: a ZIP of the folder that `study model` makes."""

import asyncio
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from study.errors import UserError
from study.service.core import ERRORS, Core, TheCore
from study.service.desk import UnknownStudyError
from study.service.downloads import LABEL, ModelResponse, take_model
from study.service.reading import Name

router = APIRouter(prefix="/api/v1", tags=["reading"], responses=ERRORS)
Label = Annotated[
    str, Path(pattern=LABEL, description="3 for the last model of trial 3, 3.4 for its candidate 4.", examples=["3"])
]
_ZIP: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}, "description": "The folder."}
}


class BusyError(Exception):
    """As many models are being sent as may be at once."""


@router.get("/studies/{name}/models/{label}/download", response_class=Response, responses=_ZIP)
async def download_model(name: Name, label: Label, core: TheCore) -> Response:
    """A model's folder with its passport, as a ZIP file: what `study model` writes and `study verify` checks."""
    study, _ = await core.desk.study(name)
    if core.num_downloads >= core.settings.max_downloads:
        raise BusyError(
            f"at most {core.settings.max_downloads} models may be sent at once, but there are as many; try again soon"
        )
    core.num_downloads += 1
    try:
        folder = await asyncio.get_running_loop().run_in_executor(core.readers, partial(take_model, study, label))
    except UserError as error:
        core.num_downloads -= 1
        raise UnknownStudyError(str(error)) from error
    except BaseException:
        core.num_downloads -= 1
        raise
    return ModelResponse(folder, on_end=partial(_end, core))


def _end(core: Core) -> None:
    core.num_downloads -= 1
