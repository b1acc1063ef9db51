"""What can be asked: studies, their trials, fronts and logs, the spaces that may be launched."""

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from study.asking.query import Study
from study.errors import UserError
from study.service import logs, schemas, views
from study.service.core import ERRORS, TheCore, respond
from study.service.desk import UnknownStudyError

router = APIRouter(prefix="/api/v1", tags=["reading"], responses=ERRORS)

Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", description="The study's name.", examples=["first"])]
Number = Annotated[int, Path(ge=0, le=10**9, description="The trial's number.", examples=[0])]
Text = Annotated[str, Query(max_length=300)]
_MAX_WILDCARDS = 4


def _told(model: type) -> dict[int | str, dict[str, Any]]:
    """How a route that answers with bytes is described."""
    return {200: {"model": model}, 304: {"description": "The client has it already (`If-None-Match`)."}}


@router.get("/studies", responses=_told(schemas.StudyLines))
async def list_studies(request: Request, core: TheCore) -> Response:
    """Every study of the home, with its state and progress."""
    looks = await core.desk.every()
    versions = tuple((name, look and (look.version, look.standing)) for name, look in looks)
    lines = partial(lambda: {"studies": [views.study_line(name, look) for name, look in looks]})
    return respond(request, await core.answer(("", "list", versions), lines))


@router.get("/studies/{name}", responses=_told(schemas.StudyPage))
async def show_study(request: Request, name: Name, core: TheCore) -> Response:
    """A study: state, counts, progress, objectives, failures with their causes."""
    look = await core.desk.look(name)
    metrics = core.metrics_of(look.study.tags.get("experiment")) if look.study else []
    num_trials = look.spec and look.spec.num_trials
    key = (name, "study", look.version, look.standing, num_trials, len(metrics))
    return respond(request, await core.answer(key, partial(views.study_page, look, metrics)))


@router.get("/studies/{name}/trials", responses=_told(schemas.TrialLines))
async def list_trials(
    request: Request,
    name: Name,
    core: TheCore,
    state: Annotated[Literal["finished", "failed", "stopped", "running", "interrupted"] | None, Query()] = None,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Response:
    """A study's trials by number, page by page."""
    look = await core.desk.look(name)
    if look.study is None:
        answer = await core.answer((name, "no trials", offset), lambda: {"total": 0, "offset": offset, "trials": []})
        return respond(request, answer)
    lines = partial(views.trial_lines, look.study, state=state, offset=offset, limit=limit)
    return respond(request, await core.answer((name, "trials", look.version, state, offset, limit), lines))


@router.get("/studies/{name}/trials/{number}", responses=_told(schemas.TrialPage))
async def show_trial(request: Request, name: Name, number: Number, core: TheCore) -> Response:
    """A trial: parameters, metrics, candidates, the cause of a failure."""
    study, version = await core.desk.study(name)
    _require_trial(study, number)
    return respond(request, await core.answer((name, "trial", version, number), partial(views.trial_page, study, number)))


@router.get("/studies/{name}/front", responses=_told(schemas.FrontPage))
async def show_front(
    request: Request,
    name: Name,
    core: TheCore,
    objective: Annotated[
        list[Text],
        Query(max_length=8, description="Another than those searched, as metric:min or metric:max; several may be given."),
    ] = [],  # noqa: B006 -- FastAPI copies it
    constraint: Annotated[list[Text], Query(max_length=8, description="A further bound, as `metric <= 3`.")] = [],  # noqa: B006
    where: Annotated[
        str | None, Query(max_length=300, description="Only these models, in the filter syntax of `study pareto --where`.")
    ] = None,
) -> Response:
    """The Pareto front, as `study pareto --json` has it, and some of the models that it beats."""
    study, version = await core.desk.study(name)
    if where and where.count("%") > _MAX_WILDCARDS:
        raise UserError(f"where may have {_MAX_WILDCARDS} wildcards (%), but got {where.count('%')}; ask for less at once")
    key = (name, "front", version, tuple(objective), tuple(constraint), where)

    def make() -> dict[str, Any]:
        return views.front_page(study, study.front(objective, where=where or None, constraints=constraint))

    return respond(request, await core.answer(key, make))


@router.get("/studies/{name}/log", responses=_told(schemas.Log))
async def show_log(
    request: Request,
    name: Name,
    core: TheCore,
    after: Annotated[int, Query(ge=0, le=2**53, description="Read on from here: `next` of the piece before.")] = 0,
    trial: Annotated[int | None, Query(ge=0, le=10**9, description="A trial's log; without it the driver's.")] = None,
) -> Response:
    """What the study's driver printed, or the worker of one of its trials; at most 64 KiB at once."""
    look = await core.desk.look(name)
    if trial is None:
        make = partial(logs.driver_log, core.home.study(name), after)
    else:
        study, _ = await core.desk.study(name)
        _require_trial(study, trial)
        make = partial(logs.trial_log, study, trial, after)
    return respond(request, await core.answer((name, "log", look.made, trial, after), make))


@router.get("/spaces", responses=_told(schemas.Spaces))
async def list_spaces(request: Request, core: TheCore) -> Response:
    """The spaces that may be launched."""
    found = (await core.registered())["spaces"]
    names = list(schemas.Space.model_fields)
    spaces = [{name: entry[name] for name in names} for entry in found]
    return respond(request, await core.answer(("", "spaces", id(found)), lambda: {"spaces": spaces}))


def _require_trial(study: Study, number: int) -> None:
    try:
        study.trial(number)
    except UserError as error:
        raise UnknownStudyError(str(error)) from error
