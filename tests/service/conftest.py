"""Homes with studies in them, and services over them."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from made_runs import MadeStudy, copy_of_store
from served import ODD, serving

from study.home import Home
from study.service.settings import ServiceSettings


@pytest.fixture(scope="session")
def made_home(store, tmp_path_factory) -> Path:
    """A home with two imported studies, as MLflow has them: `grown` with a front, failures and odd texts, and `empty`."""
    path = tmp_path_factory.mktemp("served") / "home"
    uri = copy_of_store(store, path)
    grown = MadeStudy(uri, "grown", tags={"experiment": "cmsp_curriculum", "log_scale": ["size"], "constraints": ["loss <= 50"]})
    for number in range(6):
        run = grown.trial(number, params={"width": 8 * (number + 1), "way": ODD}, loss=float(number), size=float(20 - 3 * number))
        if number == 2:
            grown.candidate(number, run, 0, loss=2.5, size=1.0)
            grown.candidate(number, run, 1, loss=2.6, size=0.5)
    grown.trial(6, loss=99.0, size=1.0)
    grown.trial(7, loss=float("nan"), size=3.0)
    for number in (8, 9):
        run = grown.start(number)
        failure = {"cause": "diverged", "error": f"a loss must be finite, but got nan in {ODD}", "traceback": "Traceback ..."}
        for key, text in failure.items():
            grown.client.set_tag(run, f"narrow_study.failure.{key}", text)
        grown.end(run, "failed")
    MadeStudy(uri, "empty")
    for name in ("grown", "empty"):
        folder = Home(path).study(name).path
        folder.mkdir(parents=True)
        (folder / "imported.json").write_text("{}")
    return path


@pytest.fixture(scope="session")
def service(made_home) -> Iterator[httpx.Client]:
    """A service on this machine alone, without a token and without limits that tests would meet."""
    with serving(ServiceSettings(home=made_home, writes_per_s=1e6, reads_per_s=1e6)) as client:
        yield client
