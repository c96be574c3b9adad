"""Real servers, started once for all the tests that use them; and what all tests of this folder have in common."""

import tempfile
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import boto3
import pytest

from tests.system.hosts import Hosts, hosts_on_a_switch, why_impossible
from tests.system.radosgw import PACKAGES, Gateway, missing_programs, rados_gateway


def pytest_addoption(parser: pytest.Parser) -> None:
    """What .ci/run asks for, where all that these tests need is installed."""
    parser.addoption("--nothing-left-out", action="store_true", help="Count a test that is skipped as failed.")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have a skipped test fail, where that is asked for."""
    report = yield
    if report.skipped and item.config.getoption("--nothing-left-out", default=False):
        report.outcome = "failed"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that `-m "not system"` leaves them out."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="session")
def s3() -> Iterator[Gateway]:
    """A real S3 server, to which the environment of this process points."""
    if missing := missing_programs():
        pytest.skip(f"{', '.join(missing)} not installed; needs the Debian packages {PACKAGES}")
    # A short path, for Unix sockets are made in it.
    with (
        tempfile.TemporaryDirectory(prefix="rgw") as folder,
        rados_gateway(Path(folder)) as gateway,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"):
            patch.delenv(name, raising=False)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, f"{folder}/none")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_ENDPOINT_URL_S3", gateway.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", gateway.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", gateway.secret_key)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield gateway


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A head and three hosts, node1 to node3, for all tests that ask for `hosts`."""
    if impossible := why_impossible():
        pytest.skip(impossible)
    with hosts_on_a_switch(tmp_path_factory.mktemp("hosts"), 3) as hosts:
        yield hosts


@pytest.fixture
def hosts(cluster: Hosts) -> Iterator[Hosts]:
    """A head and three hosts, node1 to node3, that are up and well, and are again after the test."""
    yield cluster
    for name in cluster.names:
        cluster.heal(name)


@pytest.fixture
def bucket(s3: Gateway) -> str:
    """The name of a new, empty bucket."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    boto3.session.Session().client("s3").create_bucket(Bucket=name)
    return name
