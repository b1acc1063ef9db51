"""What can be done: launch, stop, resume, extend. All of it is only begun here: the answer is 202."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body

from study.errors import UserError
from study.home import StudyFolder
from study.service import drivers, schemas
from study.service.core import ERRORS, Core, TheCore
from study.service.desk import UnknownStudyError
from study.service.reading import Name
from study.service.registered import registered_names
from study.service.standing import is_known

router = APIRouter(prefix="/api/v1", tags=["writing"], responses=ERRORS)
_Asked = Literal["launch", "stop", "resume", "extend"]


@router.post("/studies", status_code=202)
async def launch(asked: Annotated[schemas.Launch, Body()], core: TheCore) -> schemas.Accepted:
    """Launch a study over a registered space; follow it by its name."""
    known = registered_names(core.settings.spaces)
    if asked.space not in known:
        raise UserError(f"a space must be a registered one, but got {asked.space!r}; use one of {', '.join(known)}")
    folder = core.home.study(asked.name)
    return await _begin(core, folder, "launch", partial(drivers.launch, folder, asked, core.settings.address))


@router.post("/studies/{name}/stop", status_code=202)
async def stop(name: Name, asked: Annotated[schemas.Stop, Body()], core: TheCore) -> schemas.Accepted:
    """Have a study's trials save their work and end."""
    folder = _require(core, name)
    return await _begin(core, folder, "stop", partial(drivers.stop, folder))


@router.post("/studies/{name}/resume", status_code=202)
async def resume(name: Name, asked: Annotated[schemas.Resume, Body()], core: TheCore) -> schemas.Accepted:
    """Go on with a study that was stopped, or broke."""
    folder = _require(core, name)
    return await _begin(core, folder, "resume", partial(drivers.resume, folder, asked, core.settings.address))


@router.post("/studies/{name}/extend", status_code=202)
async def extend(name: Name, asked: Annotated[schemas.Extend, Body()], core: TheCore) -> schemas.Accepted:
    """Give a study more trials."""
    folder = _require(core, name)
    return await _begin(core, folder, "extend", partial(drivers.extend, folder, asked, core.settings.address))


def _require(core: Core, name: str) -> StudyFolder:
    folder = core.home.study(name)
    if not is_known(folder):
        raise UnknownStudyError(f"a study must be one of this home, but there is no {name!r}; see the list of studies")
    return folder


async def _begin(core: Core, folder: StudyFolder, what: _Asked, act: Callable[[], Any]) -> schemas.Accepted:
    """One after the other for each study; whatever comes of it, what is known of the study is out of date."""
    async with core.lock(folder.name):
        try:
            await asyncio.get_running_loop().run_in_executor(core.writers, act)
        finally:
            core.desk.forget(folder.name)
    return schemas.Accepted(study=folder.name, accepted=what)
