"""Whatever is asked in the form that the service describes, or in another: no 500, and every answer as described."""

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import sampled_from
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from served import serving

from study.service import drivers
from study.service.app import make_app
from study.service.settings import ServiceSettings

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
_QUIET = list(HealthCheck)


@pytest.fixture(scope="module")
def described(made_home):
    """A service that starts no drivers, and its description with the studies that there are."""
    options = ServiceSettings(home=made_home, reads_per_s=1e6, writes_per_s=1e6)
    with pytest.MonkeyPatch.context() as patch, serving(options) as client:
        patch.setattr(drivers, "start_driver", lambda folder, arguments: 1)
        patch.setattr("study.service.core.ask_registered", lambda own: {"spaces": [], "metrics": {}})
        told = make_app(options).openapi()
        yield str(client.base_url), told


def fuzz(described, num_examples, seed):
    """Ask every operation in the form that is described, and in others."""
    address, told = described
    known = schemathesis.openapi.from_dict(told)
    for found in known.get_all_operations():
        operation = found.ok()
        takes_something = any((operation.path_parameters, operation.query, operation.body))
        for mode in GenerationMode if takes_something else [GenerationMode.POSITIVE]:
            _fuzz(operation, mode, address, num_examples, seed)


def _fuzz(operation, mode, address, num_examples, seed):
    @hypothesis.seed(seed)
    @settings(max_examples=num_examples, deadline=None, suppress_health_check=_QUIET, database=None, phases=[Phase.generate])
    @given(operation.as_strategy(mode), sampled_from(["grown", "empty", None]))
    def ask(case, name):
        if name and "name" in case.path_parameters:
            case.path_parameters["name"] = name  # a study that there is
        case.call_and_validate(base_url=address, checks=CHECKS)

    ask()


def test_no_request_breaks_the_service_and_every_answer_is_as_described(described):
    fuzz(described, 6, seed=1)


@pytest.mark.slow
def test_many_requests_do_not_break_it_either(described):
    fuzz(described, 150, seed=2)
